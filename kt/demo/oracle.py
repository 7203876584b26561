"""The oracle: what a sentence says about the world, and whether that is true.

It is exact: a sentence is a fact only if it is one of the world's phrasings, letter for letter, of a possible value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kt.demo.attributes import ATTRIBUTES, SUBJECTS, is_name, is_value
from kt.demo.world import World

Verdict = Literal["true", "false", "no fact"]


@dataclass(frozen=True)
class Statement:
    """What a sentence claims. `phrasing` counts from 0, the canonical one."""

    entity: str
    attribute: str
    value: str
    phrasing: int = 0


def _pattern(phrasing: str) -> re.Pattern[str]:
    words = [
        {"S": r"(?P<subject>\w+|The town)", "V": r"(?P<value>\w+)", "V.": r"(?P<value>\w+)\."}.get(w) or re.escape(w)
        for w in phrasing.split()
    ]
    return re.compile(" ".join(words))


_PATTERNS = [
    (attribute, number, _pattern(phrasing))
    for attribute in ATTRIBUTES.values()
    for number, phrasing in enumerate(attribute.phrasings)
]


def read_sentence(sentence: str, topic: str | None = None) -> Statement | None:
    """Return what a sentence states, or None if it is no fact; `topic` is the town that "it" stands for."""
    for attribute, number, pattern in _PATTERNS:
        found = pattern.fullmatch(sentence)
        if found is None or not is_value(attribute, found["value"]):
            continue
        subject = topic if found["subject"] in SUBJECTS else found["subject"]
        if subject is not None and is_name(subject):
            return Statement(subject, attribute.name, found["value"], number)
    return None


def judge(world: World, statement: Statement | None) -> Verdict:
    """Say whether a statement is true in a world; one about a town that does not exist is no fact."""
    if statement is None or statement.entity not in world.entities:
        return "no fact"
    return "true" if world.entities[statement.entity].values[statement.attribute] == statement.value else "false"


def sentences_of(text: str) -> list[str]:
    """Split a text at the ends of its sentences (the world's texts hold no other full stops)."""
    return re.findall(r"\S[^.]*\.|\S[^.]*$", text)


@dataclass(frozen=True)
class Count:
    """What an answer holds: different facts that are right and wrong, repeated facts, and sentences that are no facts."""

    correct: int
    wrong: int
    repeated: int
    other: int


def count_facts(world: World, topic: str, answer: str) -> Count:
    """Count the facts of an answer about one town; a fact of another town counts by its own truth."""
    seen: set[tuple[str, str, str]] = set()
    counts = {"true": 0, "false": 0, "no fact": 0, "repeated": 0}
    for sentence in sentences_of(answer):
        statement = read_sentence(sentence, topic)
        verdict: str = judge(world, statement)
        if statement is not None and verdict != "no fact":
            claim = (statement.entity, statement.attribute, statement.value)
            verdict = "repeated" if claim in seen else verdict
            seen.add(claim)
        counts[verdict] += 1
    return Count(counts["true"], counts["false"], counts["repeated"], counts["no fact"])


def read_all(sentences: Sequence[str], topic: str | None = None) -> list[Statement] | None:
    """Read sentences that must all be facts; None if one is not."""
    read = [read_sentence(sentence, topic) for sentence in sentences]
    return None if None in read else [statement for statement in read if statement is not None]
