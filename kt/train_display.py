"""What a training shows while it runs, and keeps of it: loss, margins, accuracy per aspect, tokens a second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from kt.errors import TrainingError
from kt.records import Record, atomic_file, write_jsonl
from kt.train_kc import not_a_number

PLAIN_SECONDS = 10.0
"""Where there is no terminal, a line this often."""
VARYING = ("runtime", "per_second", "total_flos", "num_input_tokens", "num_tokens", "train_loss")
"""Parts of the names of figures that differ from run to run: they are shown, not kept."""


class TrainingDisplay(TrainerCallback):
    """Writes one line a log step on a terminal, over the last one; elsewhere one now and then. Only stderr is written to."""

    def __init__(self, name: str, tokens: int, quiet: bool = False) -> None:
        self.name, self.tokens, self.quiet = name, tokens, quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.latest: dict[str, float] = {}
        self.started = self.shown = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where this process takes up the work."""
        self.started, self.first = time.monotonic(), state.global_step
        if self.first and not self.quiet:
            self.console.print(f"{self.name}: going on from step {self.first} of {state.max_steps}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Stop at a loss that is no number; show the others."""
        logs = logs or {}
        loss = logs.get("loss", logs.get("eval_loss", 0.0))
        if loss != loss or abs(loss) == float("inf"):
            raise TrainingError(not_a_number(loss, state.global_step))
        self.latest.update({key: value for key, value in logs.items() if not any(part in key for part in VARYING)})
        if not self.quiet and state.is_world_process_zero:
            self._show(state)

    def _show(self, state: Any) -> None:
        last = state.global_step >= state.max_steps
        if self.console.is_terminal:
            print(f"\r\x1b[K{self.line(state)}", end="\n" if last else "", file=sys.stderr, flush=True)  # noqa: T201
        elif time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            self.console.print(self.line(state), markup=False)

    def line(self, state: Any) -> str:
        """Return the state in one line."""
        steps = max(1, state.global_step - self.first)
        pace = (time.monotonic() - self.started) / steps
        parts = [f"{self.name} step {state.global_step}/{state.max_steps}"]
        parts += [f"{_short(key)} {self.latest[key]:.4g}" for key in _worth_showing(self.latest)]
        parts.append(f"{self.tokens * state.num_train_epochs / max(1, state.max_steps) / max(pace, 1e-9):,.0f} tokens/s")
        left = int(pace * (state.max_steps - state.global_step))
        return " · ".join([*parts, f"{left // 60}:{left % 60:02} left"])


def _worth_showing(latest: dict[str, float]) -> list[str]:
    order = ["loss", "eval_loss", "margin"]
    return [key for key in order if key in latest] + sorted(key for key in latest if key.startswith("accuracy/"))


def _short(key: str) -> str:
    return {"eval_loss": "held-out loss"}.get(key, key.removeprefix("accuracy/"))


def kept_log(history: Sequence[Record]) -> list[Record]:
    """Return a trainer's log without what differs from run to run."""
    lines = [{key: value for key, value in entry.items() if not any(part in key for part in VARYING)} for entry in history]
    return [line for line in lines if set(line) - {"epoch", "step"}]


def write_curves(folder: Path, history: Sequence[Record]) -> None:
    """Write a training's log as numbers (curves.jsonl) and as a picture (curves.svg)."""
    lines = kept_log(history)
    write_jsonl(folder / "curves.jsonl", lines)
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = [key for key in ("loss", "eval_loss", "margin") if any(key in line for line in lines)]
    accuracies = sorted({key for line in lines for key in line if key.startswith("accuracy/")})
    groups = [[key for key in shown if "loss" in key], [key for key in shown if key == "margin"], accuracies]
    groups = [group for group in groups if group]
    if not groups:  # fewer steps than a line of the log takes
        return
    with matplotlib.rc_context({"svg.hashsalt": "kt"}):
        figure, axes = pyplot.subplots(1, len(groups), figsize=(4.5 * len(groups), 3.2), squeeze=False, layout="constrained")
        for place, group in zip(axes[0], groups, strict=True):
            for key in group:
                points = [(line["step"], line[key]) for line in lines if key in line]
                place.plot(*zip(*points, strict=True), label=_short(key), marker="." if len(points) < 40 else None)
            place.set_xlabel("step")
            place.legend()
        with atomic_file(folder / "curves.svg") as stream:
            figure.savefig(stream, format="svg", metadata={"Date": None})
        pyplot.close(figure)
