"""One table of all methods of an evaluation: each number as it stands in results.json, rounded, with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from kt.judge import OUTCOMES
from kt.records import Record
from kt.report_results import Table

FACTS = {"correct_per_answer": "correct an answer", "incorrect_per_answer": "incorrect an answer"}


def method_table(results: Record) -> Table:
    """Return a row for each method: length, refusals and empty answers beside metrics, scores, facts and judgements.

    A column of a judge has, in the row of each other method, how often the compared method won, tied and lost against it,
    and the share of wins.
    """
    compared = {row["one"] for judged in results.get("judges", []) for row in judged["comparisons"][:1]}
    rows = []
    for name, method in results["methods"].items():
        cells = dict([*_figures(method), *_judgements(results, name, compared)])
        rows.append({"method": name, **cells})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    note = f"{results['items']['used']} items; 95 % bootstrap intervals over the answers in brackets."
    if compared:
        note += f" Judged: {', '.join(compared)} against the method of the row, win / tie / lose, and the share of wins."
    return Table("methods", "All methods", columns, [[row.get(key, "") for key in columns] for row in rows], note)


def as_markdown(table: Table) -> str:
    """Return a table as Markdown, aligned, with its note below."""
    lines = [table.columns, *([str(cell) for cell in row] for row in table.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    written = [_line(line, widths) for line in lines]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*written, "", table.note])


def _line(cells: list[str], widths: list[int]) -> str:
    first = cells[0].ljust(widths[0])
    others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *others]) + " |"


def _figures(method: Record) -> Iterator[tuple[str, str]]:
    yield "words", _number(method["words"]["mean"], method["words"]["interval"], 1)
    yield "refusals", str(method["refusals"]["count"])
    yield "empty", str(method["empty"])
    for name, found in method.get("metrics", {}).items():
        yield name, _number(found["mean"], found["interval"])
    for name, found in method.get("scores", {}).items():
        yield f"{name} of 10", _number(found["mean"], found["interval"], 2)
    if counts := method.get("facts"):
        yield "# correct", str(counts["correct"])
        yield "# incorrect", str(counts["incorrect"])
        yield "% correct", _percent(counts["correct_share"]["share"], counts["correct_share"]["interval"])
        for key, title in FACTS.items():
            yield title, _number(counts[key]["mean"], counts[key]["interval"], 2)


def _judgements(results: Record, name: str, compared: set[str]) -> Iterator[tuple[str, str]]:
    several = len(results.get("judges", [])) > 1
    for judged in results.get("judges", []):
        for row in judged["comparisons"]:
            title = row["criterion"] + (f" ({judged['judge']})" if several else "")
            if row["one"] in compared and row["other"] == name:
                counts = " / ".join(str(row[outcome]["count"]) for outcome in OUTCOMES)
                yield title, f"{counts}, {_percent(row['win']['share'], row['win']['interval'])}"


def _percent(share: float | None, interval: list[float] | None) -> str:
    return _number(share, interval, 1, 100)


def _number(value: float | None, interval: list[float] | None, digits: int = 3, scale: int = 1) -> str:
    if value is None:
        return "-"
    between = f" [{', '.join(f'{scale * end:.{digits}f}' for end in interval)}]" if interval else ""
    return f"{scale * value:.{digits}f}{between}"
