"""Fact counts on the demo world beside the oracle's: by hand, and by the shipped teacher within its stated error rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import needs

from kt.demo.attributes import ATTRIBUTES, wrong_value
from kt.demo.fact_counts import METHOD, FactErrors, compare, measure, write_answers
from kt.demo.oracle import count_facts
from kt.demo.teacher import SHIPPED_TEACHER
from kt.demo.world import facts_of, make_world
from kt.records import read_jsonl, write_json, write_jsonl

pytest.importorskip("scipy")

STATED_ERROR_RATE = 0.15
"""Of the shipped teacher beside gold answers, errors for each fact: 0.077 of 496, 0.059 of the 51 here (docs/teacher.md)."""


def evaluation(folder: Path, town: str, facts: list[str], verdicts: list[str]) -> Path:
    """Write an evaluation of one answer, split into these facts, each with its verdict."""
    write_jsonl(folder / "split/records.jsonl", [{"item": town, "facts": facts}])
    checks = [{"item": town, "statement": fact, "verdict": said} for fact, said in zip(facts, verdicts, strict=False)]
    write_jsonl(folder / "check/records.jsonl", checks)
    counts = {"correct": verdicts.count("correct"), "incorrect": verdicts.count("incorrect")}
    write_json(folder / "results.json", {"methods": {METHOD: {"facts": counts}}})
    return folder


def test_errors_by_hand(tmp_path: Path) -> None:
    """An answer with three true facts and a wrong one, counted rightly, and with one mistake of each kind."""
    world = make_world(3, 2)
    town, other = world.entities.values()
    true = facts_of(town, ["land", "founder", "year"])
    year = town.values["people"]
    wrong = facts_of(town, ["people"])[0].replace(year, wrong_value(ATTRIBUTES["people"], year))
    answers = {town.name: " ".join([*true, wrong])}

    def errors(facts: list[str], verdicts: list[str]) -> FactErrors:
        return compare(world, answers, evaluation(tmp_path, town.name, facts, verdicts))

    right, no = "correct", "incorrect"
    assert errors([*true, wrong], [right, right, right, no]) == FactErrors(1, 3, 1, 3, 1)
    found = errors([*true, wrong], [right, right, no, right])
    assert (found.misjudged, found.errors, found.rate, found.off) == (2, 2, 0.5, 0)  # the two errors hide each other
    found = errors([*true[:2], wrong, facts_of(other, ["year"])[0]], [right, no, no])
    assert (found.missed, found.invented, found.misjudged, found.unchecked) == (1, 1, 1, 1)
    assert (found.counted_correct, found.counted_incorrect, found.off) == (1, 2, 0.75)
    assert errors([], []) == FactErrors(1, 3, 1, 0, 0, missed=4)


def test_the_answers_hold_right_and_wrong_facts_that_the_documents_tell(tmp_path: Path) -> None:
    world = make_world(11, 12)
    answers = write_answers(tmp_path, world)
    counts = [count_facts(world, town, text) for town, text in answers.items()]
    assert all(3 <= one.correct + one.wrong <= 7 and one.other == one.repeated == 0 for one in counts)
    share = sum(one.wrong for one in counts) / sum(one.correct + one.wrong for one in counts)
    assert 0.2 < share < 0.5
    golds = {item["id"]: item["output"] for item in json.loads((tmp_path / "test.json").read_text())}
    for town, one in zip(answers, counts, strict=True):
        gold = count_facts(world, town, golds[town])
        assert (gold.correct, gold.wrong) == (one.correct + one.wrong, 0)
    assert [record["id"] for record in read_jsonl(tmp_path / METHOD / "records.jsonl")] == list(world.entities)


@pytest.mark.xdist_group("llama")
@needs("torch", "gguf", "llama_cpp")
def test_the_shipped_teachers_counts_are_the_oracles_within_its_error_rate(tmp_path: Path) -> None:
    """What `kt` counts differs from the truth by the teacher's mistakes alone: each moves one count, a verdict two."""
    found = measure(SHIPPED_TEACHER, tmp_path, count=10)
    assert found.answers == 10
    assert found.counted_correct + found.counted_incorrect == found.correct + found.wrong - found.missed + found.invented
    assert found.off * (found.correct + found.wrong) <= found.errors + found.misjudged
    assert found.rate <= STATED_ERROR_RATE, found
    assert found.off <= 2 * STATED_ERROR_RATE, found
    first = written(tmp_path / "evaluation")
    (tmp_path / "evaluation/engine.log").unlink()
    assert measure(SHIPPED_TEACHER, tmp_path, count=10) == found
    assert written(tmp_path / "evaluation") == first
    assert not (tmp_path / "evaluation/engine.log").exists(), "the cache had everything: no engine"


def written(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "engine.log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.xdist_group("llama")
@needs("gguf", "llama_cpp")
def test_any_model_can_be_measured_on_the_command_line(tmp_path: Path, tiny_gguf: Path) -> None:
    from kt.cli.demo import demo

    options: list[Any] = ["count-facts", tiny_gguf, "--count", 2, "--evidence", "documents", "--out", tmp_path / "x"]
    done = CliRunner().invoke(demo, [*map(str, options), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["answers"] == 2
    assert found["rate"] == round(FactErrors(**{k: v for k, v in found.items() if k not in ("rate", "off")}).rate, 6)
