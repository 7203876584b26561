"""What a report shows of a finished run: its items step by step, tables, and the numbers behind the charts. Reads only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import orjson

from kt.compare import ASPECTS
from kt.cost import REFERENCE, run_costs, total
from kt.errors import InputError
from kt.records import Record, follow, read_jsonl
from kt.report_judged import add_people, read_judged, same_answers
from kt.report_people import people_tables
from kt.report_results import Cell, Table, read_results, result_charts, result_tables
from kt.report_training import read_log, training_curves, training_tables

BINS = 24
MOST_REASONS = 50
KINDS = ("build-data", "preferences", "evaluate")
"""What a manifest with steps may be of, in the order of its tables."""


@dataclass
class Report:
    """Everything that a page shows."""

    title: str
    items: list[Record]
    judged: list[Record]
    tables: list[Table]
    charts: list[Record]
    provenance: list[Record]
    scale: list[float] = field(default_factory=list)


def read_run(run: str | Path) -> Report:
    """Read a run: a folder that `kt build-data` wrote, or an experiment's with such a folder in it."""
    root = Path(run)
    manifests = _manifests(root)
    build = _build_folder(root, manifests)
    items = list(read_items(build)) if build else []
    trained = [(place, manifests[place], read_log(path)) for place, path in _of_kind(root, manifests, "train")]
    results = [(place, read_results(folder)) for place, folder in _of_kind(root, manifests, "evaluate")]
    tables = [table for place, found in results for table in result_tables(place, found)]
    people = [table for place, folder in _of_kind(root, manifests, "annotate") for table in people_tables(place, folder)]
    tables += [*people, *training_tables(trained)]
    tables += [*_step_tables(root, manifests), *_length_tables(items), _costs(root)]
    evaluated = [chart for place, found in results for chart in result_charts(place, found)]
    curves = [chart for place, _, log in trained for chart in training_curves(place, log)]
    return Report(
        title=root.resolve().name,
        items=items,
        judged=_judged(root, manifests, results),
        tables=[table for table in tables if table.rows],
        charts=[*evaluated, *_item_charts(items), *curves],
        provenance=[{"place": place, "manifest": manifest} for place, manifest in manifests.items()],
        scale=_scale(items),
    )


def _judged(root: Path, manifests: dict[str, Record], results: Sequence[tuple[str, Record]]) -> list[Record]:
    """Return the test items of every evaluation, each with the place of its evaluation, and with what people said of it."""
    found: list[Record] = []
    for place, numbers in results:
        items = {item["id"]: item for item in read_judged(root / place, numbers)}
        for study, folder in _of_kind(root, manifests, "annotate"):
            if same_answers(manifests[study], manifests[place]):
                add_people(items, read_jsonl(folder / "records.jsonl"))
        found += ({"place": place, **item} for item in items.values())
    return found


def _manifests(root: Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for path in sorted(root.rglob("manifest.json")):
        try:
            value = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}; run the step again") from error
        if isinstance(value, dict):
            found[path.parent.relative_to(root).as_posix()] = value
    if not found:
        raise InputError(f"{root}: no manifest.json in it: not a run, or one that never ended; run it again to finish it")
    return found


def _of_kind(root: Path, manifests: dict[str, Record], kind: str) -> list[tuple[str, Path]]:
    return [(place, root / place) for place, manifest in manifests.items() if manifest.get("kind") == kind]


def _build_folder(root: Path, manifests: dict[str, Record]) -> Path | None:
    found = _of_kind(root, manifests, "build-data")
    if len(found) > 1:
        places = ", ".join(place for place, _ in found)
        raise InputError(f"{root}: holds several data sets ({places}); give the folder of one run")
    return found[0][1] if found else None


# ---- items -----------------------------------------------------------------------------------------------------------


def read_items(build: Path) -> Iterator[Record]:
    """Yield every item of a build with all that was made of it.

    Deleted and shuffled facts are places in "facts", as the page marks them so; "why" says what rejected it, by step.
    """
    rejects = _rejects(build)
    names = ("extract", "score", "choose", "rewrite-question", "rewrite-answer", "rephrase", *ASPECTS.values())
    rephrased = [f"rephrase-{step}" for step in ASPECTS.values()]
    steps = [_records(build, name) for name in (*names, *rephrased)]
    for item, *found in follow(_records(build, "items"), *steps):
        extract, score, choose, asked, answered, better, *worse = found
        facts = extract["facts"] if extract else []
        made = {"id": item["id"], "question": item["question"], "answer": item["answer"], "facts": facts}
        made["ppl"] = [_finite(value) for value in score["perplexities"]] if score else None
        made["kept"] = choose["kept"] if choose else []
        made["fine"] = [asked["question"] if asked else None, answered["answer"] if answered else None]
        made["better"] = better["answer"] if better else None
        texts = worse[len(ASPECTS) :]
        made["worse"] = {
            aspect: {**_disturbed(aspect, facts, record), "text": text["answer"] if text else None}
            for aspect, record, text in zip(ASPECTS, worse, texts, strict=False)
            if record
        }
        made["why"] = rejects.get(item["id"], [])
        yield made


def _disturbed(aspect: str, facts: list[str], record: Record) -> Record:
    if aspect == "factuality":
        return {"facts": record["facts"]}
    places: dict[str, list[int]] = {}
    for place, fact in enumerate(facts):
        places.setdefault(fact, []).append(place)
    return {"places": [places[fact].pop(0) for fact in record["facts"]]}


def _records(build: Path, step: str) -> Iterable[Record]:
    path = build / step / "records.jsonl"
    return read_jsonl(path) if path.exists() else ()


def _rejects(build: Path) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for path in sorted(build.glob("*/rejected.jsonl")):
        for reject in read_jsonl(path):
            if "id" in reject:
                found.setdefault(reject["id"], []).append([reject["step"], reject["reason"]])
    return found


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _perplexities(items: Iterable[Record]) -> Iterator[tuple[float, bool]]:
    for item in items:
        for place, value in enumerate(item["ppl"] or ()):
            if value is not None:
                yield value, place in item["kept"]


def _scale(items: Sequence[Record]) -> list[float]:
    """The perplexities that part the facts into five equal lots: the colours of the page."""
    values = sorted(value for value, _ in _perplexities(items))
    return [values[len(values) * part // 5] for part in range(1, 5)] if values else []


# ---- tables ----------------------------------------------------------------------------------------------------------


def _step_tables(root: Path, manifests: dict[str, Record]) -> list[Table]:
    """Return the tables of all that goes in steps: the data first, then baselines' preferences and evaluations, by place."""
    places = [place for place, manifest in manifests.items() if manifest.get("kind") in KINDS and "steps" in manifest]
    places.sort(key=lambda place: KINDS.index(manifests[place]["kind"]))
    return [table for place in places for table in _of_steps(root / place, place, manifests[place])]


def _of_steps(folder: Path, place: str, manifest: Record) -> list[Table]:
    name, title = ("", "") if manifest["kind"] == KINDS[0] else (f"-{place}", f" ({place})")
    steps = [[step, *(counts[key] for key in ("read", "written", "rejected"))] for step, counts in manifest["steps"].items()]
    reasons: Counter[tuple[str, str]] = Counter()
    for path in sorted(folder.glob("*/rejected.jsonl")):
        reasons.update((reject["step"], reject["reason"]) for reject in read_jsonl(path))
    common = sorted(reasons.items(), key=lambda found: (-found[1], found[0]))[:MOST_REASONS]
    why: list[list[Cell]] = [[step, reason, count] for (step, reason), count in common]
    sets: list[list[Cell]] = [[one, rows] for one, rows in manifest.get("sets", {}).items()]
    note = f"The {MOST_REASONS} most common of {len(reasons)} reasons." if len(reasons) > MOST_REASONS else ""
    return [
        Table(f"steps{name}", f"Steps{title}", ["step", "read", "written", "rejected"], steps),
        Table(f"sets{name}", f"Training sets{title}", ["set", "rows"], sets),
        Table(f"rejects{name}", f"Why records were rejected{title}", ["step", "reason", "records"], why, note),
    ]


def _length_tables(items: Sequence[Record]) -> list[Table]:
    """Mean words of what a model is taught to prefer and to avoid: a great gap can be won on length alone."""
    rows: list[list[Cell]] = []
    for aspect in ASPECTS:
        pairs = [(item["better"], worse_text(item, aspect)) for item in items if item["better"] and aspect in item["worse"]]
        if pairs:
            means = [round(fmean(len(pair[side].split()) for pair in pairs), 1) for side in (0, 1)]
            rows.append([aspect, len(pairs), *means, round(means[1] / means[0], 2) if means[0] else None])
    note = "A pair whose answers have the same words is in no training set."
    columns = ["aspect", "pairs", "words, better", "words, worse", "worse / better"]
    return [Table("lengths", "Lengths of better and worse answers", columns, rows, note)]


def worse_text(item: Record, aspect: str) -> str:
    """Return the worse answer of an aspect as it stands in the training set."""
    worse = item["worse"][aspect]
    facts = worse["facts"] if "facts" in worse else [item["facts"][place] for place in worse["places"]]
    return str(worse["text"] or " ".join(facts))


def _costs(root: Path) -> Table:
    costs = run_costs(root)
    names = ("step", "model", "answers", "prompt_tokens", "completion_tokens", "paid", "at_reference")
    summed = {"step": "total", "model": "", **total(costs)}
    rows: list[list[Cell]] = [[row[name] for name in names] for row in [*costs, summed]] if costs else []
    columns = ["step", "model", "answers", "tokens in", "tokens out", "paid, $", f"with {REFERENCE}, $"]
    return Table("cost", "Cost", columns, rows, "A rerun takes these answers from the cache, and pays nothing.")


# ---- charts ----------------------------------------------------------------------------------------------------------


def _item_charts(items: Sequence[Record]) -> list[Record]:
    charts: list[Record] = []
    if items:
        counts = Counter(len(item["facts"]) for item in items if item["facts"])
        values = [{"facts": facts, "items": counts[facts]} for facts in range(1, max(counts, default=0) + 1)]
        charts.append({"kind": "facts", "title": "Facts in an answer", "values": values})
    found = list(_perplexities(items))
    if found:
        charts.append({"kind": "perplexity", "title": "Perplexity of facts", "values": _histogram(found)})
    return charts


def _histogram(found: Sequence[tuple[float, bool]]) -> list[Record]:
    """Count facts by perplexity, difficult and others, in bins of equal width on a logarithmic axis."""
    logs = [math.log(max(value, 1.0)) for value, _ in found]
    low, width = min(logs), (max(logs) - min(logs)) / BINS or 1.0
    counts = Counter((min(int((log - low) / width), BINS - 1), kept) for log, (_, kept) in zip(logs, found, strict=True))
    return [
        {
            "from": round(math.exp(low + place * width), 3),
            "to": round(math.exp(low + (place + 1) * width), 3),
            "facts": count,
            "kind": "difficult" if kept else "not difficult",
        }
        for (place, kept), count in sorted(counts.items())
    ]
