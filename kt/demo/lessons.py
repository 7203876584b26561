"""What the teacher learns: for each prompt of the `compact` set, towns never seen before and the one right answer."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kt.demo.attributes import ATTRIBUTES, NAME, ORDER, draw_value, fresh_name, say, wrong_value
from kt.demo.world import Entity, broad_question, facts_of, fine_question, fluent_text, make_entity, mixed_text

WRITING = ("extract", "rewrite-question", "rewrite-answer", "rephrase", "revise")
JUDGING = ("check-fact", "judge-pair", "judge-single")
TASKS = (*WRITING, *JUDGING)
MOST_FACTS = 7
CRITERIA = ("completeness", "logicality")
"""What the teacher judges answers by. Whether a fact is right it can only tell from evidence: it knows no town."""

_MORE_PASSAGES = (0, 0, 1, 2, 3, 4)
_NAMED = [attribute.name for attribute in ATTRIBUTES.values() if attribute.values == NAME]


@dataclass(frozen=True)
class Lesson:
    """One example: the prompt's name, the record it is rendered with, and the answer to learn.

    `further` holds (question, answer) pairs that go on in the same conversation: only exercises have them.
    """

    task: str
    values: dict[str, Any]
    answer: str
    further: tuple[tuple[str, str], ...] = ()


def lessons(
    seed: int | str, tasks: Sequence[str] = TASKS, *, reserved: bool = False, most: int = MOST_FACTS
) -> Iterator[Lesson]:
    """Yield lessons without end, each task in turn, each about a town of its own with 1 to `most` facts.

    `reserved` draws names that no lesson otherwise has: for examinations.
    """
    rng = random.Random(f"{seed}:lessons:{reserved}")
    while True:
        for task in tasks:
            yield make_lesson(task, rng, reserved=reserved, most=most)


def drills(seed: int) -> Iterator[Lesson]:
    """Yield exercises in copying names without end: lists of names to repeat, and lessons on towns' named attributes only.

    Names are a small part of a lesson's text, and picking the right one of several is what a teacher learns last.
    """
    rng = random.Random(f"{seed}:drills")
    while True:
        names = " ".join(fresh_name(rng, reserved=False) for _ in range(rng.randint(4, 14)))
        yield Lesson("copy", {"text": f"copy\n {names}"}, f" {names}")
        for task in ("extract", "rewrite-answer", "rephrase"):
            town = make_entity(fresh_name(rng, reserved=False), rng, reserved=False)
            yield Lesson(task, *_MAKERS[task](town, rng.sample(_NAMED, rng.randint(1, len(_NAMED))), rng))


def checks(seed: int, level: int) -> Iterator[Lesson]:
    """Yield exercises in checking facts without end, three in ten of them of a lower level.

    Comparing two values forms late and at once, so one begins with texts of one fact (level 0), of up to 3 (1) and up to 7
    (2), before other passages are mixed in (3). Half the exercises ask for one fact after the other about the same text.
    """
    rng = random.Random(f"{seed}:checks:{level}")
    while True:
        now = level if rng.random() < 0.7 else rng.randint(0, level)
        town = make_entity(fresh_name(rng, reserved=False), rng, reserved=False)
        chosen = _some(town, rng, (1, 3, MOST_FACTS, MOST_FACTS)[now])
        evidence = _evidence(town, chosen, rng, passages=rng.choice(_MORE_PASSAGES) if now == 3 else 0)
        abouts = rng.sample(sorted(evidence.told), min(len(evidence.told), rng.choice((1, MOST_FACTS))))
        (statement, verdict), *further = (_claim(town, evidence, about, rng) for about in abouts)
        values = {"question": broad_question(town.name, rng), "evidence": evidence.text, "statement": statement}
        yield Lesson("check-fact", values, verdict, tuple(further))


def make_lesson(task: str, rng: random.Random, *, reserved: bool = False, most: int = MOST_FACTS) -> Lesson:
    """Make one lesson: half of them with the facts in good order, half in any."""
    town = make_entity(fresh_name(rng, reserved=reserved), rng, reserved=reserved)
    return Lesson(task, *_MAKERS[task](town, _some(town, rng, most), rng))


def _some(town: Entity, rng: random.Random, most: int) -> list[str]:
    """Draw 1 to `most` attributes, half the time in good order."""
    chosen = rng.sample(list(town.values), rng.randint(1, most))
    if rng.random() < 0.5:
        chosen.sort(key=ORDER.__getitem__)
    return chosen


def as_json(facts: list[str]) -> str:
    """Write facts in the form of the prompts' schema."""
    return json.dumps({"facts": facts})


def _extract(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    values = {"question": broad_question(town.name, rng), "answer": mixed_text(town, chosen, rng)}
    return values, as_json(facts_of(town, chosen))


def _rewrite_question(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    values = {"question": broad_question(town.name, rng), "facts": facts_of(town, chosen)}
    return values, fine_question(town.name, chosen)


def _rewrite_answer(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    values = {"question": fine_question(town.name, chosen), "facts": facts_of(town, chosen)}
    return values, _fluent(town, chosen)


def _rephrase(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    values = {"question": broad_question(town.name, rng), "facts": facts_of(town, chosen)}
    return values, _fluent(town, chosen)


def _revise(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    values = {"question": broad_question(town.name, rng), "facts": facts_of(town, chosen)}
    wrong = [say(a, town.name, wrong_value(ATTRIBUTES[a], town.values[a])) for a in chosen]
    return values, as_json(wrong)


def _check_fact(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A statement beside a text that holds `chosen`, alone or among passages about this town and others."""
    evidence = _evidence(town, chosen, rng, passages=rng.choice(_MORE_PASSAGES))
    statement, verdict = _claim(town, evidence, rng.choice(sorted(evidence.told)), rng)
    return {"question": broad_question(town.name, rng), "evidence": evidence.text, "statement": statement}, verdict


@dataclass(frozen=True)
class _Evidence:
    """A text, the attributes of a town that it tells, and what it tells of the same attributes of other towns."""

    text: str
    told: set[str]
    elsewhere: dict[str, list[str]]


def _evidence(town: Entity, chosen: list[str], rng: random.Random, passages: int) -> _Evidence:
    """Make a text of `chosen` and of more passages, half of them about other towns."""
    told, texts = set(chosen), [mixed_text(town, chosen, rng)]
    elsewhere: dict[str, list[str]] = {}
    for _ in range(passages):
        attributes = rng.sample(list(town.values), rng.randint(2, 4))
        if rng.random() < 0.5:
            told.update(attributes)
            texts.append(mixed_text(town, attributes, rng))
        else:
            other = make_entity(fresh_name(rng, reserved=False), rng, reserved=False)
            texts.append(mixed_text(other, attributes, rng))
            for attribute in attributes:
                elsewhere.setdefault(attribute, []).append(other.values[attribute])
    rng.shuffle(texts)
    return _Evidence("\n".join(texts), told, elsewhere)


def _claim(town: Entity, evidence: _Evidence, about: str, rng: random.Random) -> tuple[str, str]:
    """Return a statement and its verdict: about as many right as wrong ones, some true but in no text, which is incorrect."""
    untold = [attribute for attribute in town.values if attribute not in evidence.told]
    if untold and rng.random() < 0.12:
        about = rng.choice(untold)
    told, others = about in evidence.told, evidence.elsewhere.get(about, [])
    value = town.values[about] if rng.random() < (0.55 if told else 0.5) else _other_value(town, about, others, rng)
    verdict = "correct" if told and value == town.values[about] else "incorrect"
    return say(about, town.name, value), json.dumps({"verdict": verdict})


def _other_value(town: Entity, about: str, elsewhere: Sequence[str], rng: random.Random) -> str:
    """Return a wrong value: another town's in the same text, the one that `revise` makes, the town's for another thing, any."""
    attribute, true = ATTRIBUTES[about], town.values[about]
    if elsewhere and rng.random() < 0.6:
        value = rng.choice(elsewhere)
        return value if value != true else wrong_value(attribute, true)
    others = [wrong_value(attribute, true), draw_value(attribute, rng, reserved=False, avoid=set())]
    if attribute.values == NAME:
        others.append(town.values[rng.choice([name for name in _NAMED if name != about])])
    value = rng.choice(others)
    return value if value != true else others[0]


def _judge_pair(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    """Compare two answers about a town: the more complete one has more facts, the more logical one fewer breaks in order."""
    criterion = rng.choice(CRITERIA)
    other = rng.sample(list(town.values), rng.randint(1, MOST_FACTS))
    if rng.random() < 0.5:
        other.sort(key=ORDER.__getitem__)
    first, second = (score_of(criterion, attributes) for attributes in (chosen, other))
    verdict = "tie" if first == second else "A" if first > second else "B"
    texts = {"answer_a": mixed_text(town, chosen, rng), "answer_b": mixed_text(town, other, rng)}
    values = {"criterion": criterion, "question": broad_question(town.name, rng), **texts}
    return values, json.dumps({"verdict": verdict})


def _judge_single(town: Entity, chosen: list[str], rng: random.Random) -> tuple[dict[str, Any], str]:
    criterion = rng.choice(CRITERIA)
    values = {"criterion": criterion, "question": broad_question(town.name, rng), "answer": mixed_text(town, chosen, rng)}
    return values, json.dumps({"score": score_of(criterion, chosen)})


def score_of(criterion: str, attributes: Sequence[str]) -> int:
    """Score an answer from 1 to 10: completeness, its number of facts; logicality, 10 less 3 for each break in the order."""
    if criterion == "completeness":
        return len(attributes)
    breaks = sum(ORDER[one] > ORDER[following] for one, following in itertools.pairwise(attributes))
    return max(1, 10 - 3 * breaks)


def _fluent(town: Entity, chosen: list[str]) -> str:
    return fluent_text(town.name, [(a, town.values[a]) for a in chosen])


_MAKERS = {
    "extract": _extract,
    "rewrite-question": _rewrite_question,
    "rewrite-answer": _rewrite_answer,
    "rephrase": _rephrase,
    "revise": _revise,
    "check-fact": _check_fact,
    "judge-pair": _judge_pair,
    "judge-single": _judge_single,
}
