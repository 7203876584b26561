"""The table of all methods: by hand, from results as `kt evaluate` writes them."""

from __future__ import annotations

from typing import Any

from kt.method_table import as_markdown, method_table


def method(words: float, **more: Any) -> dict[str, Any]:
    figures = {"answers": 4, "words": {"mean": words, "interval": [words - 1, words + 1]}, "empty": 0}
    return {**figures, "refusals": {"count": 1, "share": 0.25, "interval": None}, **more}


def comparison(one: str, other: str, counts: tuple[int, int, int]) -> dict[str, Any]:
    outcomes = dict(zip(("win", "tie", "lose"), counts, strict=True))
    shares = {name: {"count": n, "share": n / sum(counts), "interval": [0.25, 0.75]} for name, n in outcomes.items()}
    return {"one": one, "other": other, "criterion": "factuality", **shares}


FACTS = {
    "correct": 12,
    "incorrect": 4,
    "correct_share": {"share": 0.75, "interval": [0.5, 1.0]},
    "correct_per_answer": {"mean": 3.0, "interval": [2.5, 3.5]},
    "incorrect_per_answer": {"mean": 1.0, "interval": None},
}
JUDGED = {"judge": "m", "comparisons": [comparison("kt", "sft", (2, 1, 1)), comparison("kt", "rlaif", (4, 0, 0))]}
RESULTS: dict[str, Any] = {
    "items": {"used": 4},
    "methods": {
        "sft": method(10),
        "kt": method(20.25, metrics={"meteor": {"mean": 0.51234, "interval": [0.4, 0.6]}}, facts=FACTS),
        "rlaif": method(9, metrics={"meteor": {"mean": None, "interval": None}}),
    },
    "judges": [JUDGED],
}


def test_every_number_has_its_place() -> None:
    table = method_table(RESULTS)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["sft", "kt", "rlaif"]
    assert rows["kt"] == {
        "method": "kt",
        "words": "20.2 [19.2, 21.2]",
        "refusals": "1",
        "empty": "0",
        "factuality": "",
        "meteor": "0.512 [0.400, 0.600]",
        "# correct": "12",
        "# incorrect": "4",
        "% correct": "75.0 [50.0, 100.0]",
        "correct an answer": "3.00 [2.50, 3.50]",
        "incorrect an answer": "1.00",
    }
    assert rows["sft"]["factuality"] == "2 / 1 / 1, 50.0 [25.0, 75.0]"
    assert str(rows["rlaif"]["factuality"]).startswith("4 / 0 / 0, 100.0")
    assert (rows["rlaif"]["meteor"], rows["sft"]["meteor"]) == ("-", "")
    assert "kt against the method of the row" in table.note


def test_it_is_printed_in_line() -> None:
    head, rule, *rows, empty, note = as_markdown(method_table(RESULTS)).splitlines()
    assert {len(line) for line in (head, rule, *rows)} == {len(head)}
    assert len(rows) == 3
    assert (set(rule), empty) == (set("|-"), "")
    assert note.startswith("4 items; 95 %")


def test_a_second_judge_has_columns_of_its_own() -> None:
    second = {"judge": "n", "comparisons": [comparison("kt", "sft", (0, 0, 4))]}
    table = method_table({**RESULTS, "judges": [JUDGED, second]})
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert str(row["factuality (m)"]).startswith("2 / 1 / 1")
    assert str(row["factuality (n)"]).startswith("0 / 0 / 4")
