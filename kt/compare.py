"""Stage II, coarse-grained knowledge comparison (paper 3.3): a better answer and three kinds of worse ones.

The better answer is rephrased from all facts; the worse are the facts with some deleted (completeness), each made wrong
(factuality), or out of order (logicality), joined by a space as in the paper, or rephrased too (`rejected: rephrase`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kt.augment import asker, facts_of, step_config, text_of
from kt.pipeline import BadAnswer, Reject, Step
from kt.prompts import Prompt
from kt.records import Record, follow
from kt.request import Completion

ASPECTS = {"completeness": "delete", "factuality": "revise", "logicality": "shuffle"}
"""Which step disturbs the facts for which aspect."""


def rephrase(prompt: Prompt, seed: int, attempts: int, name: str = "rephrase") -> Step:
    """Facts → {"id", "answer"}: one fluent answer from all facts in order."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        return [{"id": record["id"], "answer": text_of(completions[0])}]

    return Step(name, asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def delete(share: float, seed: int) -> Step:
    """Facts → the survivors of deleting `share` of them at random (rounded down, at least one), in their order."""
    draw = random.Random()

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        facts = _several(record)
        gone = max(1, math.floor(len(facts) * share))
        draw.seed(f"{seed}:delete:{record['id']}")
        drawn = set(draw.sample(range(len(facts)), gone))
        return [_disturbed(record, [fact for i, fact in enumerate(facts) if i not in drawn])]

    return Step("delete", lambda _: (), parse, {"share": share, "seed": seed})


def revise(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Facts → as many wrong ones, every one changed."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        facts, wrong = record["facts"], facts_of(completions[0])
        if len(wrong) != len(facts):
            raise BadAnswer(f"{len(wrong)} revised facts for {len(facts)}")
        same = sum(a == b or a.casefold() == b.casefold() for a, b in zip(facts, wrong, strict=True))
        if same:
            raise BadAnswer(f"{same} of {len(facts)} facts unchanged")
        return [_disturbed(record, wrong)]

    return Step("revise", asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def shuffle(seed: int) -> Step:
    """Facts → all of them in another order than theirs."""
    draw = random.Random()

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        facts = _several(record)
        if len(set(facts)) == 1:
            raise Reject("all facts are the same: no other order")
        draw.seed(f"{seed}:shuffle:{record['id']}")
        order = list(facts)
        while order == facts:
            draw.shuffle(order)
        return [_disturbed(record, order)]

    return Step("shuffle", lambda _: (), parse, {"seed": seed})


def pairs(facts: Iterable[Record], better: Iterable[Record], worse: Mapping[str, Iterable[Record]]) -> Iterator[Record]:
    """Yield every item's pairs, aspect by aspect: {"id", "item", "aspect", "prompt", "chosen", "rejected"}.

    `worse` holds for each aspect records with "answer". All inputs stand in the order of `facts`; an item that lacks an
    answer has no pair of that aspect, and a worse answer in the very words of the better one makes none.
    """
    for record, good, *bad in follow(facts, better, *worse.values()):
        for aspect, rejected in zip(worse, bad, strict=True):
            if good and rejected and not _same_words(good["answer"], rejected["answer"]):
                pair = {"id": f"{record['id']}/{aspect}", "item": record["id"], "aspect": aspect}
                yield {**pair, "prompt": record["question"], "chosen": good["answer"], "rejected": rejected["answer"]}


def _several(record: Record) -> list[str]:
    facts: list[str] = record["facts"]
    if len(facts) < 2:
        raise Reject("one fact only: nothing to delete or put in another order")
    return facts


def _disturbed(record: Record, facts: list[str]) -> Record:
    return {"id": record["id"], "question": record["question"], "facts": facts, "answer": " ".join(facts)}


def _same_words(one: str, other: str) -> bool:
    """Compare texts without regard to case and space; their first words tell most apart."""
    return _plain(one.split(None, 4)[:4]) == _plain(other.split(None, 4)[:4]) and _plain(one.split()) == _plain(other.split())


def _plain(words: Sequence[str]) -> str:
    return " ".join(words).casefold()
