"""The tiny teacher: a Llama of two million parameters, trained from scratch to do the `compact` prompts in the world."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt.demo.feed import Batch, Feed, Stage
from kt.demo.lessons import TASKS, WRITING, lessons
from kt.demo.spelling import closed_values, make_tokenizer
from kt.prompts import load_prompts

if TYPE_CHECKING:
    import torch

CONTEXT = 2048
"""Longest sequence, in tokens, that the engines may serve; lessons have some 60 to 250."""


@dataclass(frozen=True)
class Recipe:
    """Everything the training depends on; the same recipe gives the same weights on the same machine."""

    steps: int = 12000
    seed: int = 0
    batch: int = 16  # lessons a step
    rate: float = 2e-3  # AdamW's peak, reached after `warm` steps, kept until `decay_from`, then down to 0 in a line
    warm: int = 100
    decay_from: float = 0.4
    drill: int = 1000  # of the first so many steps, `drills` in three are drills in copying names: it forms sooner
    drills: int = 2
    checks: int = 0  # of five steps so many are exercises in checking facts, at this level
    level: int = 0
    narrow: int = 1000  # in the other ones of these steps, lessons have few facts
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    vocabulary: int = 1440
    tasks: tuple[str, ...] = TASKS


_COPYING = ("extract", "rewrite-answer", "rephrase")
_CHECKING = Recipe(
    steps=100_000, batch=32, warm=200, drill=0, drills=0, narrow=0, checks=4,
    tasks=(*_COPYING, "revise", "judge-pair", "judge-single", "rewrite-question"),
)  # fmt: skip
SHIPPED = (
    Recipe(steps=12000, tasks=WRITING),
    Recipe(
        steps=16000, seed=1, rate=1.5e-3, warm=200, decay_from=0.5, drill=12000, drills=1, narrow=0,
        tasks=(*_COPYING, "revise", "rewrite-question", *_COPYING),
    ),
    Recipe(
        steps=9000, seed=2, rate=1.2e-3, warm=100, decay_from=0.2, drill=4000, drills=1, narrow=0,
        tasks=(*_COPYING, "revise", "rewrite-question", *_COPYING),
    ),
    Recipe(
        steps=40000, seed=3, rate=1.5e-3, warm=300, decay_from=0.35, drill=8000, drills=1, narrow=0,
        tasks=(*_COPYING, "revise", "check-fact", "judge-pair", *_COPYING, "rewrite-question", "check-fact", "judge-single"),
    ),
    Recipe(
        steps=40000, seed=4, rate=8e-4, warm=200, decay_from=0.4, drill=0, drills=0, narrow=0,
        tasks=(
            "check-fact", "extract", "check-fact", "judge-pair", "rewrite-answer", "check-fact", "rephrase", "judge-single",
            "check-fact", "revise", "rewrite-question", "judge-pair",
        ),
    ),
    replace(_CHECKING, steps=1050, seed=7, batch=64, rate=1e-3, decay_from=0.65, level=0),
    replace(_CHECKING, steps=5450, seed=21, batch=48, rate=1e-3, decay_from=0.65, level=1),
    replace(_CHECKING, seed=6, rate=1.5e-3, decay_from=0.6, level=2),
    replace(_CHECKING, seed=7, rate=1.5e-3, decay_from=0.45, level=3),
    replace(_CHECKING, seed=8, rate=1.5e-3, decay_from=0.35, level=3),
    replace(_CHECKING, seed=9, rate=1.2e-3, decay_from=0.25, level=3),
)  # fmt: skip
"""How the shipped teacher was trained, each recipe from the weights of the one before; docs/teacher.md says where."""

SHIPPED_TEACHER = Path(__file__).parent / "weights" / "teacher"
"""The shipped teacher: a Hugging Face folder, recipes and marks in its training.json; the same as teacher.gguf beside it."""


@dataclass(frozen=True)
class Progress:
    """How far a training is: loss in nats a token of the answers, tokens read so far, seconds since the start."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


Watcher = Callable[[Progress], None]


def train_teacher(
    folder: str | Path,
    recipe: Recipe = Recipe(),
    *,
    minutes: float | None = None,
    threads: int | None = 1,
    compiled: bool = False,
    watch: Watcher | None = None,
    checkpoint_minutes: float | None = None,
    start: str | Path | None = None,
) -> Path:
    """Train by the recipe and write a Hugging Face folder, from scratch or from the weights that `start` holds.

    With `minutes`, the schedule ends at that time if the steps have not; the weights then depend on the machine's speed.
    `compiled` needs a C++ compiler and a minute, and then takes two thirds of the time; it rounds otherwise.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    tokenizer, model = _from(start) if start else _anew(recipe)
    # On CPU, for sequences this short, the backward pass of SDPA takes a quarter of the whole time.
    model.set_attn_implementation("eager")
    if compiled:
        model.model.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    feed = Feed(tokenizer, recipe.seed, recipe.batch, recipe.tasks, recipe.level)
    started = saved = time.monotonic()
    tokens = 0
    for step in range(recipe.steps):
        spent = (time.monotonic() - started) / 60 / minutes if minutes else 0.0
        done = max(step / recipe.steps, spent)
        if done >= 1:
            break
        batch = feed.batch(_stage(recipe, step))
        loss = _step(model, optimizer, _rate(recipe, step, done), batch)
        tokens += int((batch.inputs != tokenizer.pad_token_id).sum())
        if watch is not None:
            watch(Progress(step + 1, recipe.steps, loss, tokens, time.monotonic() - started))
        if checkpoint_minutes and time.monotonic() - saved > checkpoint_minutes * 60:
            saved = time.monotonic()
            save(model, tokenizer, folder)
    return save(model, tokenizer, folder)


def _stage(recipe: Recipe, step: int) -> Stage:
    """Say which kind of lessons comes at a step."""
    if step < recipe.drill and step % 3 < recipe.drills:
        return "drill"
    if step % 5 < recipe.checks:
        return "check"
    return "narrow" if step < recipe.narrow else "wide"


def _rate(recipe: Recipe, step: int, done: float) -> float:
    """Return the learning rate when a share `done` of the schedule has passed: up, level, then down in a line."""
    return recipe.rate * min(1.0, (step + 1) / recipe.warm, (1 - done) / (1 - recipe.decay_from))


def _step(model: Any, optimizer: Any, rate: float, batch: Batch) -> float:
    """Take one step of the optimizer and return the loss before it."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = _loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    """Weighted mean negative log-likelihood of the answers' tokens, in nats; logits are made for these alone."""
    import torch

    asked = batch.weights[:, 1:] > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.inputs).last_hidden_state[:, :-1][asked]
        logits = model.lm_head(hidden)
    losses = torch.nn.functional.cross_entropy(logits.float(), batch.inputs[:, 1:][asked], reduction="none")
    weights = batch.weights[:, 1:][asked]
    return (losses * weights).sum() / weights.sum()


def save(model: Any, tokenizer: Any, folder: str | Path) -> Path:
    """Write weights in half precision, tokenizer with chat template, and generation settings that end at the end mark."""
    import copy

    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tokenizer_of(recipe: Recipe) -> Any:
    """Make the tokenizer from rendered lessons and every value."""
    some = itertools.islice(lessons(recipe.seed, recipe.tasks), 3000)
    prompts = load_prompts("compact")
    texts = [f"{prompts[lesson.task].render(lesson.values)[-1]['content']}\n{lesson.answer}" for lesson in some]
    texts.append(closed_values(100, random.Random(recipe.seed)))
    return make_tokenizer(texts, recipe.vocabulary)


def _anew(recipe: Recipe) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_of(recipe)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.hidden * 8 // 3,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return tokenizer, model


def _from(folder: str | Path) -> tuple[Any, Any]:
    from kt.models import load_trainable

    model, tokenizer = load_trainable(folder, None, None)
    return tokenizer, model
