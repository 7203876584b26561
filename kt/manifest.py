"""What proves a step: versions, settings, hashes of what went in and came out, which model answered how often at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kt import __version__
from kt.records import file_hash, write_json
from kt.request import Completion


class Usage:
    """Counts of the completions that a step's records were made of, by model."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], list[float]] = {}

    def add(self, completions: Iterable[Completion]) -> None:
        """Count completions in."""
        for completion in completions:
            total = self.totals.setdefault((completion.model, completion.answered_by), [0, 0, 0, 0.0])
            total[0] += 1
            total[1] += completion.prompt_tokens
            total[2] += completion.completion_tokens
            total[3] += completion.cost

    def models(self) -> list[dict[str, Any]]:
        """Return one row a model, in order of name."""
        return [
            {
                "model": model,
                "answered_by": answered_by,
                "completions": int(total[0]),
                "prompt_tokens": int(total[1]),
                "completion_tokens": int(total[2]),
                "cost": round(total[3], 6),
            }
            for (model, answered_by), total in sorted(self.totals.items())
        ]


def write_manifest(
    folder: Path, step: str, config: Mapping[str, Any], sources: Sequence[Path], usage: Usage, counts: Mapping[str, int]
) -> None:
    """Write a step's manifest.json, last: its existence means that the step is done."""
    manifest = {
        "step": step,
        "kt": __version__,
        "config": config,
        "inputs": {_short(source): file_hash(source) for source in sources},
        "models": usage.models(),
        **counts,
        "outputs": {name: file_hash(folder / name) for name in ("records.jsonl", "rejected.jsonl")},
    }
    write_json(folder / "manifest.json", manifest)


def _short(path: Path) -> str:
    """Name an input by its last two parts, which do not change when a run moves to another machine."""
    return "/".join(path.parts[-2:])
