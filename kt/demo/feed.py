"""Lessons as batches of tokens: what the teacher reads at each stage of its training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kt.demo.lessons import MOST_FACTS, Lesson, checks, drills, lessons
from kt.prompts import Message, load_prompts

if TYPE_CHECKING:
    import torch

Stage = Literal["drill", "check", "narrow", "wide"]
"""What a batch holds: exercises in copying names or in checking facts, lessons with FEW_FACTS or MOST_FACTS at most."""

FEW_FACTS = 3
POOL = 16
"""Batches drawn at a time, sorted by length and shuffled, so that little of a batch is padding."""

Encoded = tuple[list[int], list[float]]
"""A lesson's token ids, and what each weighs in the loss: 0 outside answers."""


class Batch(NamedTuple):
    """Token ids and their weights in the loss (both lessons, tokens), padded at the end."""

    inputs: torch.Tensor
    weights: torch.Tensor


class Feed:
    """Gives batches of lessons that are never the same, drawn from the seed."""

    def __init__(self, tokenizer: Any, seed: int, size: int, tasks: Sequence[str], level: int = 0) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.prompts = load_prompts("compact")
        self.rng = random.Random(f"{seed}:batches")
        self.sources: dict[Stage, Iterator[Lesson]] = {
            "drill": drills(seed),
            "check": checks(seed, level),
            "narrow": lessons(seed * 2, tasks, most=FEW_FACTS),
            "wide": lessons(seed * 2 + 1, tasks, most=MOST_FACTS),
        }
        self.waiting: dict[Stage, list[list[Encoded]]] = {stage: [] for stage in self.sources}

    def batch(self, stage: Stage) -> Batch:
        """Return the next batch of a stage."""
        if not self.waiting[stage]:
            self.waiting[stage] = self._draw(self.sources[stage])
        return as_batch(self.waiting[stage].pop(), self.tokenizer.pad_token_id)

    def _draw(self, source: Iterator[Lesson]) -> list[list[Encoded]]:
        rows = list(self._encode(list(itertools.islice(source, self.size * POOL))))
        rows.sort(key=lambda row: len(row[0]))
        batches = [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        self.rng.shuffle(batches)
        return batches

    def _encode(self, drawn: Sequence[Lesson]) -> Iterator[Encoded]:
        """A token weighs as the inverse square root of its answer's length, so that no list drowns one-word verdicts."""
        end = self.tokenizer.eos_token
        turns = [[(said(self.tokenizer, messages), f"{answer}{end}") for messages, answer in self._turns(one)] for one in drawn]
        texts = [text for lesson in turns for turn in lesson for text in turn]
        found = iter(self.tokenizer(texts)["input_ids"])
        for lesson in turns:
            ids: list[int] = []
            weights: list[float] = []
            for _ in lesson:
                asked, answered = next(found), next(found)
                ids += [*asked, *answered]
                weights += [0.0] * len(asked) + [len(answered) ** -0.5] * len(answered)
            yield ids, weights

    def _turns(self, lesson: Lesson) -> Iterator[tuple[list[Message], str]]:
        yield self._messages(lesson), lesson.answer
        for question, answer in lesson.further:
            yield [{"role": "user", "content": question}], answer

    def _messages(self, lesson: Lesson) -> list[Message]:
        """Render a lesson's prompt as `kt` sends it; a drill in copying has its text as it is."""
        if lesson.task in self.prompts:
            return self.prompts[lesson.task].render(lesson.values)
        return [{"role": "user", "content": lesson.values["text"]}]


def said(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return messages as the model reads them, up to where its answer begins."""
    return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def as_batch(rows: Sequence[Encoded], padding: int) -> Batch:
    """Put encoded lessons into tensors."""
    import torch

    shape = len(rows), max(len(ids) for ids, _ in rows)
    batch = Batch(torch.full(shape, padding), torch.zeros(shape))
    for place, (ids, weights) in enumerate(rows):
        batch.inputs[place, : len(ids)] = torch.tensor(ids)
        batch.weights[place, : len(ids)] = torch.tensor(weights)
    return batch
