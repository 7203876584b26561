"""The numbers of an evaluation as a report shows them: every one as it stands in results.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from kt.errors import InputError
from kt.judge import OUTCOMES
from kt.records import Record

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """One table of a report: the same rows go into the page, Markdown, CSV and JSON."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


def read_results(folder: Path) -> Record:
    """Read an evaluation's results.json."""
    try:
        found: Record = orjson.loads((folder / "results.json").read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{folder / 'results.json'}: cannot be read: {error}; run `kt evaluate` again") from error
    return found


def result_tables(place: str, results: Record) -> list[Table]:
    """Return an evaluation's tables: every figure of every method, the comparisons by judges, and how far these agree."""
    note = "95 % bootstrap intervals over the answers."
    figures = [[name, *figure] for name, method in results.get("methods", {}).items() for figure in _figures("", method)]
    judged = [_comparison(one["judge"], row) for one in results.get("judges", []) for row in one["comparisons"]]
    columns = ["judge", "criterion", "method", "against", "pairs", "wins", "ties", "losses", "win share", "low", "high"]
    tables = [
        Table(f"methods-{place}", f"Figures by method ({place})", ["method", "figure", "value", "low", "high"], figures, note),
        Table(f"judges-{place}", f"Judged in pairs ({place})", [*columns, "position bias", "rejected"], judged, note),
    ]
    if found := results.get("agreement"):
        row = [", ".join(found["judges"]), *(found[name] for name in ("units", "same", "kappa", "alpha"))]
        names = ["judges", "pairs", "alike", "Cohen's kappa", "Krippendorff's alpha"]
        tables.append(Table(f"agreement-{place}", f"Agreement of judges ({place})", names, [row]))
    return tables


def _figures(name: str, value: Any) -> Iterator[list[Cell]]:
    """Yield [figure, value, low, high] of every number below a value; a mean or share has an interval."""
    if isinstance(value, dict):
        low, high = value.get("interval") or (None, None)
        for key, inner in value.items():
            if key in ("mean", "share") and "interval" in value:
                yield [name, inner, low, high]
            elif key != "interval":
                yield from _figures(f"{name} {key}".strip(), inner)
    elif isinstance(value, int | float):
        yield [name, value, None, None]


def _comparison(judge: str, row: Record) -> list[Cell]:
    low, high = row["win"]["interval"] or (None, None)
    counts = [row[outcome]["count"] for outcome in OUTCOMES]
    who = [judge, row["criterion"], row["one"], row["other"], row["pairs"]]
    return [*who, *counts, row["win"]["share"], low, high, row["position_bias"], row["rejected"]]


def result_charts(place: str, results: Record) -> list[Record]:
    """Return the numbers behind the bars of wins, ties and losses, a chart for each judge."""
    charts: list[Record] = []
    for one in results.get("judges", []):
        values = [
            {
                "comparison": f"{row['one']} : {row['other']}, {row['criterion']}",
                "outcome": outcome,
                "share": row[outcome]["share"],
                "order": order,
            }
            for row in one["comparisons"]
            for order, outcome in enumerate(OUTCOMES)
        ]
        charts.append({"name": "judges", "title": f"Judged by {one['judge']} ({place})", "values": values})
    return charts
