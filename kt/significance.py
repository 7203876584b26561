"""`kt compare`: do two methods' numbers differ by more than chance? Paired tests over the items that both answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson

from kt.errors import InputError
from kt.intervals import DIGITS, mean, stream
from kt.records import Record, read_jsonl
from kt.report_results import Cell, read_results

RESAMPLES = 9999
TEST = f"paired permutation test of the mean difference, two-sided (scipy; exact where there are at most {RESAMPLES} ways)"
CORRECTION = "Benjamini-Hochberg over all rows (scipy)"
SHOWN = 5

NEEDED_ALIKE = {"meteor": ("wordnet",), "bertscore": ("encoder",), "facts": ("judge", "evidence"), "score": ("judge",)}
"""Settings that two evaluations must share for numbers that begin with these words to be comparable."""

Values = dict[tuple[str, str], dict[str, float]]
"""By method and number: the value of each item that has one."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as it was written: its items (question and gold answer by id), values, settings, prompts' hashes."""

    place: Path
    items: dict[str, tuple[str, str]]
    values: Values
    methods: list[str]
    settings: Record
    prompts: Record


@dataclass(frozen=True)
class Difference:
    """One number of two methods over the same items: their means, the mean difference with its bootstrap interval, p.

    `left_out` items have no value on one side: an answer without facts, or a judge without a verdict. `p_adjusted` is p
    after the correction for the number of rows.
    """

    method: str
    against: str
    number: str
    items: int
    left_out: int
    mean: float | None
    against_mean: float | None
    difference: float | None
    interval: list[float] | None
    p: float | None
    p_adjusted: float | None = None


def compare_runs(
    run: str | Path, other: str | Path, methods: Sequence[tuple[str, str]] = (), *, common: bool = False, seed: int = 42
) -> dict[str, Any]:
    """Compare every number that two evaluations share, item by item.

    `methods` are pairs (method of `run`, method of `other`); by default those of the same name. Evaluations of other
    items, questions or gold answers are an InputError that names ids, unless only the `common` items are to count; so
    are other settings behind a shared number (judge, evidence, WordNet, encoder, prompts).
    """
    one, two = read_evaluation(run), read_evaluation(other)
    chosen = list(methods) or _same_names(one, two)
    for place, names, known in ((one.place, [m for m, _ in chosen], one), (two.place, [m for _, m in chosen], two)):
        if unknown := [name for name in names if name not in known.methods]:
            raise InputError(f"{place}: no answers of {', '.join(unknown)}; it has those of {', '.join(known.methods)}")
    items = _shared_items(one, two, common)
    rows = [row for pair in chosen for row in _rows(one, two, pair, items, seed)]
    apart = {"one": len(one.items) - len(items), "other": len(two.items) - len(items)}
    adjusted = [asdict(row) for row in _corrected(rows)]
    return {"items": len(items), "not_shared": apart, "test": TEST, "correction": CORRECTION, "rows": adjusted}


# ---- what was evaluated ----------------------------------------------------------------------------------------------


def read_evaluation(run: str | Path) -> Evaluated:
    """Read an evaluation's folder, or the one evaluation in a run's folder."""
    place = _find(Path(run))
    results = read_results(place)
    items = {item["id"]: (item["question"], item["gold"]) for item in read_jsonl(place / "items" / "records.jsonl")}
    values: Values = {}
    for name, number, item, value in _values(place):
        values.setdefault((name, number), {})[item] = value
    manifest = _manifest(place)
    return Evaluated(place, items, values, list(results["methods"]), results["settings"], manifest.get("prompts", {}))


def _find(run: Path) -> Path:
    found = [path.parent for path in sorted(run.rglob("manifest.json")) if _manifest(path.parent).get("kind") == "evaluate"]
    if not found:
        raise InputError(f"{run}: no finished evaluation in it; run `kt evaluate`, or kt run with a section `evaluate`")
    if len(found) > 1 and run not in found:
        raise InputError(f"{run}: holds several evaluations ({', '.join(map(str, found))}); give the folder of one")
    return run if run in found else found[0]


def _manifest(folder: Path) -> Record:
    try:
        found = orjson.loads((folder / "manifest.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _values(place: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield (method, number, item, value) of everything that was measured answer by answer."""
    for item in read_jsonl(place / "items" / "records.jsonl"):
        for name, answer in item["answers"].items():
            yield name, "words", item["id"], float(len(answer.split()))
    for record in _records(place, "metrics"):
        yield from ((record["name"], key, record["item"], value) for key, value in _numbers(record))
    for record in _records(place, "facts"):
        for key in ("correct", "incorrect", "correct_share"):
            if record[key] is not None:
                yield record["name"], f"facts {key}", record["item"], float(record[key])
    for record in _records(place, "score"):
        yield record["name"], f"score {record['criterion']}", record["item"], float(record["score"])


def _records(place: Path, step: str) -> Iterator[Record]:
    path = place / step / "records.jsonl"
    return read_jsonl(path) if path.exists() else iter(())


def _numbers(record: Record) -> Iterator[tuple[str, float]]:
    return ((key, float(value)) for key, value in record.items() if key not in ("id", "item", "name"))


# ---- what can be compared --------------------------------------------------------------------------------------------


def _same_names(one: Evaluated, two: Evaluated) -> list[tuple[str, str]]:
    if one.place.resolve() == two.place.resolve():
        raise InputError(f"{one.place}: the same evaluation twice; say which of its methods: --method knowtuning=sft")
    shared = [name for name in one.methods if name in two.methods]
    if not shared:
        raise InputError(
            f"no method of one name in both: {one.place} has {', '.join(one.methods)}, {two.place} has"
            f" {', '.join(two.methods)}; say which: --method {one.methods[0]}={two.methods[0]}"
        )
    return [(name, name) for name in shared]


def _shared_items(one: Evaluated, two: Evaluated, common: bool) -> list[str]:
    shared = [name for name in one.items if name in two.items]
    apart = [(a.place, [name for name in b.items if name not in a.items]) for a, b in ((one, two), (two, one))]
    if not common and any(missing for _, missing in apart):
        said = "; ".join(f"{place} lacks {len(names)} ({_some(names)})" for place, names in apart if names)
        raise InputError(f"different items: {said}; evaluate the same test file, or compare the shared ones: --common")
    if not shared:
        raise InputError(f"{one.place} and {two.place} share no item")
    if other := [name for name in shared if one.items[name] != two.items[name]]:
        raise InputError(
            f"{len(other)} items of one id have other questions or gold answers ({_some(other)}): not one test set"
        )
    return shared


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def _check_settings(one: Evaluated, two: Evaluated, number: str) -> None:
    for start, keys in NEEDED_ALIKE.items():
        if not number.startswith(start):
            continue
        other = [key for key in keys if one.settings.get(key) != two.settings.get(key)]
        if "judge" in keys and one.prompts != two.prompts:
            other.append("prompts")
        if other:
            raise InputError(f"{number}: the two evaluations differ in {', '.join(other)}: these numbers cannot be compared")


# ---- the numbers -----------------------------------------------------------------------------------------------------


def _rows(one: Evaluated, two: Evaluated, pair: tuple[str, str], items: Sequence[str], seed: int) -> Iterator[Difference]:
    name, against = pair
    for own, number in one.values:
        if own != name or (against, number) not in two.values:
            continue
        _check_settings(one, two, number)
        mine, theirs = one.values[name, number], two.values[against, number]
        both = [item for item in items if item in mine and item in theirs]
        paired = [mine[item] for item in both], [theirs[item] for item in both]
        yield difference((name, against, number), *paired, len(items) - len(both), seed)


def difference(
    about: tuple[str, str, str], ones: Sequence[float], others: Sequence[float], left_out: int, seed: int
) -> Difference:
    """Compare paired values, one an item; without any pair all figures are None."""
    gaps = [one - other for one, other in zip(ones, others, strict=True)]
    if not gaps:
        return Difference(*about, 0, left_out, None, None, None, None, None)
    purpose = "compare:" + ":".join(about)
    found = mean(gaps, seed, purpose)
    mine, theirs = (round(fmean(values), DIGITS) for values in (ones, others))
    p = paired_p(ones, others, seed, purpose)
    return Difference(*about, len(gaps), left_out, mine, theirs, found["mean"], found["interval"], p)


def paired_p(ones: Sequence[float], others: Sequence[float], seed: int, purpose: str) -> float:
    """Return the two-sided p of the mean difference when each item's two values may have been swapped."""
    import numpy

    def mean_gap(one: Any, other: Any, axis: int = -1) -> Any:
        return (one - other).mean(axis=axis)

    found = _scipy("permutation_test")(
        (numpy.asarray(ones, dtype=float), numpy.asarray(others, dtype=float)),
        mean_gap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        rng=stream(seed, purpose),
    )
    return round(float(found.pvalue), DIGITS)


def _corrected(rows: Sequence[Difference]) -> list[Difference]:
    """Adjust the rows' p for their number."""
    known = [row.p for row in rows if row.p is not None]
    adjusted = iter(_scipy("false_discovery_control")(known, method="bh") if known else ())
    return [row if row.p is None else replace(row, p_adjusted=round(float(next(adjusted)), DIGITS)) for row in rows]


def _scipy(name: str) -> Callable[..., Any]:
    try:
        from scipy import stats
    except ImportError as error:
        raise InputError("kt compare needs scipy: pip install 'kt[eval]'") from error
    found: Callable[..., Any] = getattr(stats, name)
    return found


def compared_as_rows(found: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the rows of a comparison as they are printed."""
    rows: list[list[Cell]] = []
    for row in found["rows"]:
        between = f" [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]" if row["interval"] else ""
        figures = [_shown(row[key]) for key in ("mean", "against_mean")]
        gap = "-" if row["difference"] is None else f"{row['difference']:+.3f}{between}"
        ps = [_shown(row[key], 4) for key in ("p", "p_adjusted")]
        rows.append([row["method"], row["against"], row["number"], str(row["items"]), *figures, gap, *ps])
    return rows


def _shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
