"""The teacher's examination: greedy answers about towns whose names no lesson had, marked line by line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt.demo.lessons import JUDGING, TASKS, Lesson, lessons
from kt.demo.oracle import read_sentence, sentences_of
from kt.errors import InputError
from kt.prompts import Message, load_prompts

Answering = Callable[[Sequence[list[Message]]], Iterator[str]]
"""Answers conversations in order, greedily."""

LONGEST_ANSWER = 320
"""In tokens: seven facts as JSON take some 110."""


@dataclass(frozen=True)
class Marks:
    """Of one task: lines that are right, of how many; answers in which every line is."""

    right: int = 0
    lines: int = 0
    whole: int = 0
    answers: int = 0

    def __add__(self, other: Marks) -> Marks:
        return Marks(
            self.right + other.right,
            self.lines + other.lines,
            self.whole + other.whole,
            self.answers + other.answers,
        )

    @property
    def share(self) -> float:
        """The share of lines that are right."""
        return self.right / self.lines if self.lines else 0.0


def examine(answering: Answering, *, seed: int = 1, count: int = 200, tasks: Sequence[str] = TASKS) -> dict[str, Marks]:
    """Ask `count` questions of every task and mark the answers."""
    prompts = load_prompts("compact")
    asked = list(itertools.islice(lessons(seed, tasks, reserved=True), count * len(tasks)))
    totals = dict.fromkeys(tasks, Marks())
    answers = answering([prompts[lesson.task].render(lesson.values) for lesson in asked])
    for lesson, answer in zip(asked, answers, strict=True):
        totals[lesson.task] += mark(lesson, answer)
    return totals


def mark(lesson: Lesson, answer: str) -> Marks:
    """Mark one answer: a missing, additional or displaced line is a wrong one.

    A line is right if it is the one right line; a revised fact, if it is a canonical sentence with another value.
    """
    expected, given = lines_of(lesson.task, lesson.answer), lines_of(lesson.task, answer)
    if lesson.task == "revise":
        pairs = zip(lesson.values["facts"], given, strict=False)
        right = sum(is_wrong_but_well_formed(fact, line) for fact, line in pairs)
    else:
        right = sum(one == other for one, other in zip(expected, given, strict=False))
    lines = max(len(expected), len(given))
    return Marks(right, lines, int(right == lines), 1)


def lines_of(task: str, answer: str) -> list[str]:
    """Cut an answer into what is marked: facts, sentences, the one question, the one verdict or score."""
    if task in JUDGING:
        return _verdict(answer)
    if task in ("extract", "revise"):
        try:
            facts = json.loads(answer)["facts"]
        except (ValueError, TypeError, KeyError):
            return []
        return [str(fact) for fact in facts] if isinstance(facts, list) else []
    return [answer] if task == "rewrite-question" else sentences_of(answer)


def _verdict(answer: str) -> list[str]:
    """Return the verdict or score of an answer; what a checker quotes beside it is not marked."""
    try:
        found = json.loads(answer)
        return [str(found["verdict"] if "verdict" in found else found["score"])]
    except (ValueError, TypeError, KeyError):
        return []


def is_wrong_but_well_formed(fact: str, line: str) -> bool:
    """Say whether a line states, in canonical words, another value of the same attribute of the same town."""
    true, other = read_sentence(fact), read_sentence(line)
    if true is None or other is None or other.phrasing != 0:
        return False
    return (other.entity, other.attribute) == (true.entity, true.attribute) and other.value != true.value


# ---- who answers ---------------------------------------------------------------------------------------------------


def model_at(path: str | Path, threads: int | None = None) -> Answering:
    """Return what answers with the model at a path: a Hugging Face folder, or a GGUF file through llama.cpp."""
    path = Path(path)
    if path.suffix == ".gguf":
        return _gguf(path, threads)
    if (path / "config.json").exists():
        return _folder(path, threads)
    raise InputError(f"{path}: no model: give a folder with config.json or a .gguf file")


def _folder(path: Path, threads: int | None, batch: int = 50) -> Answering:
    import torch

    from kt.models import load

    found = load(path, threads=threads, device="cpu")
    tokenizer: Any = found.tokenizer
    model: Any = found.model
    tokenizer.padding_side = "left"

    def answer(conversations: Sequence[list[Message]]) -> Iterator[str]:
        for start in range(0, len(conversations), batch):
            some = list(conversations[start : start + batch])
            texts = tokenizer.apply_chat_template(some, add_generation_prompt=True, tokenize=False)
            inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            yield from tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def _gguf(path: Path, threads: int | None) -> Answering:
    from llama_cpp import Llama

    model: Any = Llama(str(path), n_ctx=1024, n_threads=threads, verbose=False)

    def answer(conversations: Sequence[list[Message]]) -> Iterator[str]:
        for messages in conversations:
            done = model.create_chat_completion(messages, temperature=0, max_tokens=LONGEST_ANSWER)
            yield done["choices"][0]["message"]["content"] or ""

    return answer
