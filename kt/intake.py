"""The first step of a run: the input files' usable items into items/records.jsonl, the others, with reasons, beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kt.errors import InputError
from kt.items import read_items
from kt.pipeline import StepResult, Watcher
from kt.records import jsonl_writer


def take_in(data: Sequence[str], limit: int | None, out: Path, watcher: Watcher, *, answered: bool = True) -> StepResult:
    """Normalise the input files into `out`/items; InputError if no item is usable. See read_items for `answered`."""
    folder = out / "items"
    result = StepResult("items", folder / "records.jsonl")
    watcher.begin("items", None)
    with jsonl_writer(result.records) as write, jsonl_writer(folder / "rejected.jsonl") as reject:
        for found in read_items(data, limit, answered=answered):
            result.read += 1
            if found.item is None:
                result.rejected += 1
                reject({"where": _place(found.where), "step": "items", "reason": found.reason, "record": found.raw})
            else:
                result.written += 1
                write(found.item)
    if not result.written:
        raise InputError(f"{', '.join(data)}: no usable item of {result.read}; see {folder / 'rejected.jsonl'}")
    watcher.end(result)
    return result


def _place(where: str) -> str:
    """Name file and line without the folders above, which differ between machines."""
    return where.rsplit("/", 1)[-1]
