"""Fact counts beside the oracle's: answers about a world's towns, a third of their facts wrong, counted by `kt evaluate`.

The judge that splits and checks is a small model, so its counts err; by how much is what this measures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kt.config import EvaluateConfig, validate
from kt.demo.attributes import ATTRIBUTES, ORDER, wrong_value
from kt.demo.oracle import count_facts, judge, read_sentence, sentences_of
from kt.demo.world import Entity, World, broad_question, documents, make_world, mixed_text, write_questions
from kt.evaluate import evaluate
from kt.gguf import write_gguf
from kt.records import Record, read_jsonl, write_jsonl

Evidence = Literal["gold", "documents"]

METHOD = "answers"
WRONG_SHARE = 1 / 3


@dataclass(frozen=True)
class FactErrors:
    """What the oracle counts in all answers, what `kt evaluate` counts, and where the two part.

    `missed` facts of an answer were not split off, `invented` ones were split off but are not in it, of the others
    `misjudged` were checked wrongly. `unchecked` split facts have no verdict; the facts of a rejected answer are missed.
    """

    answers: int = 0
    correct: int = 0
    wrong: int = 0
    counted_correct: int = 0
    counted_incorrect: int = 0
    missed: int = 0
    invented: int = 0
    misjudged: int = 0
    unchecked: int = 0

    def __add__(self, other: FactErrors) -> FactErrors:
        mine, theirs = asdict(self), asdict(other)
        return FactErrors(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def errors(self) -> int:
        """Return how many facts went wrong, in splitting or checking."""
        return self.missed + self.invented + self.misjudged + self.unchecked

    @property
    def rate(self) -> float:
        """Return the errors for each fact of the answers: the teacher's error rate."""
        return self.errors / max(1, self.correct + self.wrong)

    @property
    def off(self) -> float:
        """Return how far the counts are off, for each fact of the answers; a misjudged fact is off in both counts."""
        difference = abs(self.correct - self.counted_correct) + abs(self.wrong - self.counted_incorrect)
        return difference / max(1, self.correct + self.wrong)


def measure(model: str | Path, out: str | Path, *, count: int = 40, seed: int = 11, evidence: Evidence = "gold") -> FactErrors:
    """Have `kt evaluate` count the facts of `count` answers with a teacher as judge, and compare with the oracle.

    `model` is a GGUF file or the teacher's folder. The answers are checked against gold answers that hold the true facts, or
    against the world's documents, which mention each fact at least once.
    """
    root, world = Path(out), make_world(seed, count)
    answers = write_answers(root, world)
    found = evaluate(_config(root, _gguf(Path(model), root), evidence))
    return compare(world, answers, found.out)


def write_answers(root: Path, world: World) -> dict[str, str]:
    """Write test items and answers, some facts wrong, and the world's documents; return the answers by town."""
    golds, answers = [], []
    for town in world.entities.values():
        rng = random.Random(f"{world.seed}:fact counts:{town.name}")
        chosen = sorted(rng.sample(list(town.values), rng.randint(3, 7)), key=ORDER.__getitem__)
        item = {"id": town.name, "question": broad_question(town.name, rng)}
        golds.append({**item, "answer": mixed_text(town, chosen, rng)})
        answers.append({**item, "answer": mixed_text(_mistaken(town, rng), chosen, rng)})
    write_questions(root / "test.json", golds)
    write_jsonl(root / METHOD / "records.jsonl", answers)
    write_jsonl(root / "documents.jsonl", ({"text": text} for text in documents(world)))
    return {answer["id"]: answer["answer"] for answer in answers}


def _mistaken(town: Entity, rng: random.Random) -> Entity:
    values = {
        name: wrong_value(ATTRIBUTES[name], value) if rng.random() < WRONG_SHARE else value
        for name, value in town.values.items()
    }
    return Entity(town.name, values, town.mentions)


def _gguf(model: Path, root: Path) -> Path:
    if model.suffix == ".gguf":
        return model
    target = root / "teacher.gguf"
    write_gguf(model, target)
    return target


def _config(root: Path, model: Path, evidence: Evidence) -> EvaluateConfig:
    values: dict[str, Any] = {
        "answers": {METHOD: str(root / METHOD)},
        "data": [str(root / "test.json")],
        "out": str(root / "evaluation"),
        "cache": str(root / "cache.sqlite"),
        "metrics": ["facts"],
        "judge": {"backend": "llama-cpp", "model": str(model)},
        "evidence": ["gold"] if evidence == "gold" else [str(root / "documents.jsonl")],
        "prompts": "compact",
        "offline": True,
        "server": {"max_model_len": 2048},
    }
    return validate(EvaluateConfig, values, "fact counts")


# ---- beside the oracle -----------------------------------------------------------------------------------------------


def compare(world: World, answers: Mapping[str, str], evaluation: Path) -> FactErrors:
    """Compare an evaluation's facts and counts with what the oracle reads in the answers."""
    splits = {record["item"]: record["facts"] for record in read_jsonl(evaluation / "split/records.jsonl")}
    checks: dict[str, list[Record]] = {}
    for record in read_jsonl(evaluation / "check/records.jsonl"):
        checks.setdefault(record["item"], []).append(record)
    found = [_of_answer(world, town, text, splits.get(town, []), checks.get(town, [])) for town, text in answers.items()]
    counted = json.loads((evaluation / "results.json").read_bytes())["methods"][METHOD]["facts"]
    return sum(found, FactErrors(counted_correct=counted["correct"], counted_incorrect=counted["incorrect"]))


def _of_answer(world: World, town: str, answer: str, facts: list[str], checks: list[Record]) -> FactErrors:
    truth = count_facts(world, town, answer)
    stated = {_claim(sentence, town) for sentence in sentences_of(answer)}
    claims = {fact: _claim(fact, town) for fact in facts}
    right = {fact: claim for fact, claim in claims.items() if claim in stated}
    verdicts = {fact: "correct" if judge(world, read_sentence(fact, town)) == "true" else "incorrect" for fact in right}
    misjudged = [check for check in checks if verdicts.get(check["statement"], check["verdict"]) != check["verdict"]]
    return FactErrors(
        answers=1,
        correct=truth.correct,
        wrong=truth.wrong,
        missed=len(stated - set(right.values())),
        invented=len(facts) - len(set(right.values())),
        misjudged=len(misjudged),
        unchecked=len(facts) - len(checks),
    )


def _claim(sentence: str, town: str) -> tuple[str, str, str] | None:
    """Return what a sentence states, however it is said."""
    statement = read_sentence(sentence, town)
    return (statement.entity, statement.attribute, statement.value) if statement else None
