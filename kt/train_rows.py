"""Questions and answers into rows of tokens for supervised training: prompt masked, EOS kept, hold-out set apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.preference_rows import encode_answer
from kt.records import Record, read_jsonl
from kt.template import render_prompt

IGNORED = -100
"""The label of a token that is no target."""


def read_answers(path: str | Path) -> list[Record]:
    """Read an SFT or KA set; a row without a prompt or a completion is an InputError that names file, line and id."""
    rows = list(read_jsonl(path))
    if not rows:
        raise InputError(f"{path} has no rows: build the data first")
    for number, row in enumerate(rows, 1):
        for key in ("id", "prompt", "completion"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                name = row.get("id", "without id")
                raise InputError(f"{path}:{number} ({name}): {key!r} is missing or empty: remove the row, or fill it")
    return rows


def encode_rows(tokenizer: Any, rows: Sequence[Record], template: str, max_length: int) -> tuple[list[Record], list[str]]:
    """Tokenise rows, the prompt's labels masked; return them with "item", and the ids of rows over `max_length` tokens."""
    made, too_long = [], []
    for row in rows:
        encoded = encode_answer(tokenizer, render_prompt(row["prompt"], template, tokenizer), row["completion"])
        if len(encoded.ids) > max_length:
            too_long.append(row["id"])
            continue
        labels = [IGNORED] * encoded.start + encoded.ids[encoded.start :]
        made.append({"item": item_of(row["id"]), "input_ids": encoded.ids, "labels": labels})
    return made, too_long


def item_of(row: str) -> str:
    """Return the id of the item that a row was made of: an item's rows are held out together."""
    return row.removesuffix("/fine")


def hold_out(rows: Sequence[Record], count: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Set the rows of `count` random items apart (method.md: 100 random training items choose the best step)."""
    items = sorted({row["item"] for row in rows})
    if count and count >= len(items):
        raise InputError(f"hold_out: {count} of {len(items)} items leaves none to train on: lower hold_out in the config")
    apart = set(random.Random(f"{seed}:hold-out").sample(items, count))
    return [row for row in rows if row["item"] not in apart], [row for row in rows if row["item"] in apart]


def refuse_or_drop(too_long: Sequence[str], max_length: int, what: str) -> None:
    """Under `too_long: error`, say which rows do not fit; cutting an answer would lose its EOS."""
    if too_long and what == "error":
        shown = ", ".join(too_long[:5]) + (", ..." if len(too_long) > 5 else "")
        raise InputError(
            f"{len(too_long)} rows have more than {max_length} tokens ({shown}): raise max_length, remove them, or set"
            " `too_long: drop`"
        )
