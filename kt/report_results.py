"""The numbers of an evaluation as a report shows them: every one as it stands in results.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from kt.errors import InputError
from kt.judge import OUTCOMES
from kt.records import Record

Cell = str | int | float | None

INTERVALS = "95 % bootstrap intervals over the answers."


@dataclass(frozen=True)
class Table:
    """One table of a report: the same rows go into the page, Markdown, CSV and JSON.

    `bounded` holds the places of numbers whose interval stands in the next two columns, low and high; the page and Markdown
    show the three in one cell.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    bounded: tuple[int, ...] = ()


def read_results(folder: Path) -> Record:
    """Read an evaluation's results.json."""
    try:
        found: Record = orjson.loads((folder / "results.json").read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{folder / 'results.json'}: cannot be read: {error}; run `kt evaluate` again") from error
    return found


# ---- tables ----------------------------------------------------------------------------------------------------------


def result_tables(place: str, results: Record) -> list[Table]:
    """Return an evaluation's tables: every figure of every method, the comparisons by judges, and how far these agree."""
    rows = [(one["judge"], row) for one in results.get("judges", []) for row in one["comparisons"]]
    figures, counts = _methods_tables(place, results)
    return [
        figures,
        _judged_table(place, rows),
        _asked_table(place, rows),
        counts,
        *_agreement_tables(place, results.get("agreement")),
        _items_table(place, results.get("items", {})),
    ]


def _methods_tables(place: str, results: Record) -> list[Table]:
    """Return two tables with a column for each method: what has intervals, and what is merely counted."""
    methods = {name: dict(_figures("", method)) for name, method in results.get("methods", {}).items()}
    figures = list(dict.fromkeys(figure for found in methods.values() for figure, _ in found))
    tables = []
    for name, title, bounded in (("methods", "Figures by method", True), ("counts", "Counts by method", False)):
        width = 3 if bounded else 1
        rows: list[list[Cell]] = [
            [figure, *(cell for found in methods.values() for cell in found.get((figure, bounded), (None,) * width))]
            for figure in figures
            if any((figure, bounded) in found for found in methods.values())
        ]
        columns = ["figure", *(_with_bounds(methods) if bounded else methods)]
        places = _bounded(1, len(methods)) if bounded else ()
        note = f"{INTERVALS} {_settings(results.get('settings', {}))}".strip() if bounded else ""
        tables.append(Table(f"{name}-{place}", f"{title} ({place})", columns, rows, note, places))
    return tables


def _with_bounds(names: Iterable[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name} low", f"{name} high")]


def _bounded(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + 3 * count, 3))


def _settings(settings: Record) -> str:
    """Say in a line what can change the numbers."""
    said = {key: settings[key] for key in ("judge", "second_judge", "prompts", "rule", "evidence") if settings.get(key)}
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in said.items()) + ("." if said else "")


def _figures(name: str, value: Any) -> Iterator[tuple[tuple[str, bool], tuple[Cell, ...]]]:
    """Yield the numbers of a value: ((figure, True), (value, low, high)) of a mean or share, ((figure, False), (value,))."""
    if isinstance(value, dict):
        low, high = value.get("interval") or (None, None)
        for key, inner in value.items():
            if key in ("mean", "share") and "interval" in value:
                yield (_said(name), True), (inner, low, high)
            elif key != "interval":
                yield from _figures(f"{name} {key}".strip(), inner)
    elif isinstance(value, int | float):
        yield (_said(name), False), (value,)


def _said(figure: str) -> str:
    part, _, rest = figure.removeprefix("metrics ").partition(" ")
    return f"{part}, {rest.replace('_', ' ')}" if rest else part


def _judged_table(place: str, rows: Sequence[tuple[str, Record]]) -> Table:
    columns = ["judge", "criterion", "method", "against", "pairs", "wins", "ties", "losses"]
    shares = ["win share", "tie share", "lose share"]
    cells: list[list[Cell]] = []
    for judge, row in rows:
        counts = [row["pairs"], *(row[outcome]["count"] for outcome in OUTCOMES)]
        bounds = [cell for outcome in OUTCOMES for cell in (row[outcome]["share"], *(row[outcome]["interval"] or (None, None)))]
        cells.append([judge, row["criterion"], row["one"], row["other"], *counts, *bounds])
    title = f"Judged in pairs ({place})"
    return Table(f"judges-{place}", title, [*columns, *_with_bounds(shares)], cells, INTERVALS, _bounded(len(columns), 3))


def _asked_table(place: str, rows: Sequence[tuple[str, Record]]) -> Table:
    """Return how the judges went about it: whom they were not asked about, and how far the place decided."""
    why = list(dict.fromkeys(reason for _, row in rows for reason in row["without_judge"]))
    columns = ["judge", "criterion", "method", "against", "judged", *why, "rejected"]
    cells: list[list[Cell]] = []
    for judge, row in rows:
        without = [row["without_judge"].get(reason, 0) for reason in why]
        bias = [row["always_first"], row["always_second"], row["position_bias"]]
        cells.append([judge, row["criterion"], row["one"], row["other"], row["judged"], *without, row["rejected"], *bias])
    note = "Position bias: the share of judged pairs in which both orders named the same place."
    names = [*columns, "always the first", "always the second", "position bias"]
    return Table(f"asked-{place}", f"How the judges decided ({place})", names, cells, note)


def _agreement_tables(place: str, found: Record | None) -> list[Table]:
    if not found:
        return []
    row = [", ".join(found["judges"]), *(found[name] for name in ("units", "same", "kappa", "alpha"))]
    names = ["judges", "pairs", "alike", "Cohen's kappa", "Krippendorff's alpha"]
    return [Table(f"agreement-{place}", f"Agreement of judges ({place})", names, [row])]


def _items_table(place: str, items: Record) -> Table:
    return Table(f"items-{place}", f"Test items ({place})", list(items), [list(items.values())] if items else [])


# ---- charts ----------------------------------------------------------------------------------------------------------

GROUPS = {
    "METEOR": ("metrics", "meteor"),
    "BERTScore": ("metrics", "bertscore"),
    "Single scores, 1 to 10": ("scores", ""),
    "Share of facts that are correct": ("facts", "correct_share"),
    "Facts an answer": ("facts", "correct_per_answer incorrect_per_answer"),
}
"""A chart each: the part of a method's results, and how the names of its figures begin."""


def result_charts(place: str, results: Record) -> list[Record]:
    """Return the numbers behind the charts: every figure that has an interval, and each judge's wins, ties and losses."""
    methods = results.get("methods", {})
    found = [(title, _values(methods, part, names)) for title, (part, names) in GROUPS.items()]
    found.append(("Words an answer", _values({name: {"": {"words": one["words"]}} for name, one in methods.items()}, "", "")))
    charts: list[Record] = [
        {"kind": "intervals", "title": f"{title} ({place})", "values": values} for title, values in found if values
    ]
    return charts + [_outcomes(place, one) for one in results.get("judges", [])]


def _values(methods: Record, part: str, names: str) -> list[Record]:
    values = []
    for method, results in methods.items():
        for figure, found in results.get(part, {}).items():
            value = found.get("mean", found.get("share")) if isinstance(found, dict) else None
            if value is not None and figure.startswith(tuple(names.split()) or ""):
                low, high = found["interval"] or (value, value)
                values.append({"method": method, "figure": figure.replace("_", " "), "value": value, "low": low, "high": high})
    return values


def _outcomes(place: str, one: Record) -> Record:
    """Return the shares of a judge's outcomes; that of the wins, which begins at 0, with the bounds of its interval."""
    values = []
    for row in one["comparisons"]:
        for order, outcome in enumerate(OUTCOMES):
            comparison = f"{row['one']} : {row['other']}, {row['criterion']}"
            value = {"comparison": comparison, "outcome": outcome, "share": row[outcome]["share"], "order": order}
            if outcome == "win" and row["win"]["interval"]:
                value["low"], value["high"] = row["win"]["interval"]
            values.append(value)
    return {"kind": "outcomes", "title": f"Judged by {one['judge']} ({place})", "values": values}
