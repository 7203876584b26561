"""The display of a running build: step, items, calls and tokens a second, cache hits, fallback answers, cost, time left.

rich draws it on a terminal; elsewhere it is a plain line every ten seconds. Only stderr is written to.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kt.client import Counters
from kt.pipeline import StepResult, Watcher

PLAIN_SECONDS = 10.0
"""Where there is no terminal, a line this often."""


class Display(Watcher):
    """Shows how a build goes on. Use as a context manager."""

    def __init__(self, counters: Counters, *, stream: Any = None) -> None:
        self.counters = counters
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.step, self.done = "", 0
        self.total: int | None = None
        self.step_started = time.monotonic()
        self.before = (0, 0)
        self._live = Live(console=self.console, refresh_per_second=5, get_renderable=lambda: Text(self.line()))
        self._stop = threading.Event()
        self._plain = threading.Thread(target=self._print_now_and_then, daemon=True)

    def begin(self, step: str, total: int | None) -> None:
        """A step begins; it will read `total` records, if that is known."""
        self.step, self.total, self.done = step, total, 0
        self.step_started = time.monotonic()
        self.before = (self.counters.sent, self.counters.prompt_tokens + self.counters.completion_tokens)

    def filled(self) -> None:
        """A record's answers are all in the cache."""
        self.done += 1

    def end(self, result: StepResult) -> None:
        """A step has written its records."""
        rejected = f", {result.rejected} rejected" if result.rejected else ""
        seconds = time.monotonic() - self.step_started
        self.console.print(f"{result.name}: {result.read} read, {result.written} written{rejected}, {seconds:.1f} s")
        self.step = ""

    def waiting(self, seconds: float, last_line: str) -> None:
        """An engine is starting; say for how long and what its log says."""
        self.console.print(f"starting the engine, {seconds:.0f} s: {last_line.strip()[:90]}", markup=False)

    def line(self) -> str:
        """Return the state in one line."""
        if not self.step:
            return ""
        counters, elapsed = self.counters, max(1e-6, time.monotonic() - self.step_started)
        calls = counters.sent - self.before[0]
        tokens = counters.prompt_tokens + counters.completion_tokens - self.before[1]
        of = f"/{self.total}" if self.total else ""
        parts = [f"{self.step} {self.done}{of}", f"{calls / elapsed:.1f} calls/s", f"{tokens / elapsed:,.0f} tokens/s"]
        parts.append(f"{counters.hits} from the cache")
        if counters.fallback:
            parts.append(f"{counters.fallback} by the fallback")
        if counters.cost:
            parts.append(f"${counters.cost:.4f}")
        if self.total and 0 < self.done < self.total:
            parts.append(f"{_duration(elapsed / self.done * (self.total - self.done))} left")
        return " · ".join(parts)

    def _print_now_and_then(self) -> None:
        while not self._stop.wait(PLAIN_SECONDS):
            if self.done:
                self.console.print(self.line(), markup=False)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        else:
            self._plain.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._live.is_started:
            self._live.stop()
        elif self._plain.is_alive():
            self._plain.join()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
