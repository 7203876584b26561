"""What a report shows of people's judgements: their counts, and how far they agree with each other and with judges."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from kt.annotate_agreement import FILE
from kt.errors import InputError
from kt.judge import OUTCOMES
from kt.records import read_jsonl
from kt.report_results import Cell, Table


def people_tables(place: str, folder: Path) -> list[Table]:
    """Return a study's tables; that of agreement is there once `kt annotate --agreement` has written it."""
    counts: dict[tuple[str, str, str, str], Counter[str]] = {}
    for record in read_jsonl(folder / "records.jsonl"):
        group = (record["criterion"], record["one"], record["other"], record["annotator"])
        counts.setdefault(group, Counter())[record["outcome"]] += 1
    rows: list[list[Cell]] = [[*group, *(found[o] for o in OUTCOMES)] for group, found in counts.items()]
    columns = ["criterion", "method", "against", "annotator", "wins", "ties", "losses"]
    return [Table(f"human-{place}", f"Judged by people ({place})", columns, rows), *_agreement(place, folder / FILE)]


def _agreement(place: str, path: Path) -> list[Table]:
    if not path.exists():
        return []
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; run `kt annotate --agreement` again") from error
    rows: list[list[Cell]] = [
        [row["criterion"], ", ".join(one["judges"]), *(one[name] for name in ("units", "same", "kappa", "alpha"))]
        for row in found
        for one in row["agreement"]
    ]
    columns = ["criterion", "who", "items", "alike", "Cohen's kappa", "Krippendorff's alpha"]
    return [Table(f"human-agreement-{place}", f"Agreement of people ({place})", columns, rows)]
