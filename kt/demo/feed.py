"""Lessons as batches of tokens: what the teacher reads at each stage of its training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kt.demo.lessons import MOST_FACTS, Lesson, drills, lessons
from kt.prompts import Message, load_prompts

if TYPE_CHECKING:
    import torch

Stage = Literal["drill", "narrow", "wide"]
"""What a batch holds: exercises in copying names, lessons with FEW_FACTS at most, or lessons with MOST_FACTS at most."""

FEW_FACTS = 3
POOL = 16
"""Batches drawn at a time, sorted by length and shuffled, so that little of a batch is padding."""

Encoded = tuple[list[int], list[int]]


class Batch(NamedTuple):
    """Token ids (lessons, tokens), padded at the end, and where each answer starts and ends (lessons)."""

    inputs: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


class Feed:
    """Gives batches of lessons that are never the same, drawn from the seed."""

    def __init__(self, tokenizer: Any, seed: int, size: int, tasks: Sequence[str]) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.prompts = load_prompts("compact")
        self.rng = random.Random(f"{seed}:batches")
        self.sources: dict[Stage, Iterator[Lesson]] = {
            "drill": drills(seed),
            "narrow": lessons(seed * 2, tasks, most=FEW_FACTS),
            "wide": lessons(seed * 2 + 1, tasks, most=MOST_FACTS),
        }
        self.waiting: dict[Stage, list[list[Encoded]]] = {"drill": [], "narrow": [], "wide": []}

    def batch(self, stage: Stage) -> Batch:
        """Return the next batch of a stage."""
        if not self.waiting[stage]:
            self.waiting[stage] = self._draw(self.sources[stage])
        return as_batch(self.waiting[stage].pop(), self.tokenizer.pad_token_id)

    def _draw(self, source: Iterator[Lesson]) -> list[list[Encoded]]:
        rows = list(self._encode(list(itertools.islice(source, self.size * POOL))))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        self.rng.shuffle(batches)
        return batches

    def _encode(self, drawn: Iterable[Lesson]) -> Iterator[Encoded]:
        drawn = list(drawn)
        asked = [said(self.tokenizer, self._messages(lesson)) for lesson in drawn]
        answers = [lesson.answer + self.tokenizer.eos_token for lesson in drawn]
        return zip(self.tokenizer(asked)["input_ids"], self.tokenizer(answers)["input_ids"], strict=True)

    def _messages(self, lesson: Lesson) -> list[Message]:
        """Render a lesson's prompt as `kt` sends it; a drill in copying has its text as it is."""
        if lesson.task in self.prompts:
            return self.prompts[lesson.task].render(lesson.values)
        return [{"role": "user", "content": lesson.values["text"]}]


def said(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return messages as the model reads them, up to where its answer begins."""
    return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def as_batch(rows: Sequence[Encoded], padding: int) -> Batch:
    """Put encoded prompts and answers into tensors."""
    import torch

    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), width), padding)
    for place, (prompt, answer) in enumerate(rows):
        inputs[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    return Batch(inputs, starts, starts + torch.tensor([len(answer) for _, answer in rows]))
