"""A tiny Llama made on the spot, in a minute: the teacher's training, cut short.

It answers the `compact` prompts in the right form and ends by itself, so that a real engine has a real model to serve where
no model hub can be reached. What it says is mostly wrong: copying unseen names takes it more steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kt.demo.teacher import Progress, Recipe, train_teacher


def make_tiny_model(
    folder: str | Path, *, steps: int = 300, seed: int = 0, progress: Callable[[int, int, float], None] | None = None
) -> Path:
    """Train a 2-million-parameter Llama and write it as a Hugging Face folder; the same seed gives the same weights here.

    `progress` hears step, steps and the loss (nats a token) of each batch.
    """

    def watch(state: Progress) -> None:
        if progress is not None:
            progress(state.step, state.steps, state.loss)

    recipe = Recipe(steps=steps, seed=seed, batch=16, warm=20, drill=0, narrow=steps // 2)
    # One thread: beside any other job two spin against each other and take ten times as long.
    return train_teacher(folder, recipe, threads=1, watch=watch)
