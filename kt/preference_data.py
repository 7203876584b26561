"""KC pair rows into items ready for training: pairs that share prompt and chosen answer in one row, checked early."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.packing import Row
from kt.preference_rows import encode_answer, pack_answers
from kt.records import Record, read_jsonl
from kt.template import render_prompt
from kt.train_config import AT_ONCE


@dataclass(frozen=True)
class PackedItem:
    """One row of tokens with its chosen answer first; `ids` and `aspects` name its pairs, one a rejected answer.

    `lengths` has the scored tokens of every answer, the chosen one's first.
    """

    row: Row
    lengths: list[int]
    ids: list[str]
    aspects: list[str]


def read_pairs(path: str | Path) -> list[Record]:
    """Read a KC pair file; a pair without a real choice in it is an InputError that names file and id."""
    pairs = list(read_jsonl(path))
    if not pairs:
        raise InputError(f"{path} has no pairs: build the data first")
    for number, pair in enumerate(pairs, 1):
        _check(pair, f"{path} pair {number}")
    return pairs


def pack_pairs(
    tokenizer: Any, pairs: Iterable[Record], template: str = "alpaca", max_length: int = 1024
) -> tuple[list[PackedItem], list[str]]:
    """Lay pairs of one prompt and chosen answer into one row, at most AT_ONCE to each, in order of first appearance.

    A pair of which the prompt with either answer has more than `max_length` tokens is left out, and its id returned beside.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for pair in pairs:
        groups.setdefault((pair["prompt"], pair["chosen"]), []).append(pair)
    items: list[PackedItem] = []
    too_long: list[str] = []
    rows = ((*key, group[first : first + AT_ONCE]) for key, group in groups.items() for first in range(0, len(group), AT_ONCE))
    for question, chosen, group in rows:
        prompt = render_prompt(question, template, tokenizer)
        answers = [encode_answer(tokenizer, prompt, text) for text in (chosen, *(pair["rejected"] for pair in group))]
        fits = [max(len(answers[0].ids), len(answer.ids)) <= max_length for answer in answers[1:]]
        too_long.extend(pair["id"] for pair, fit in zip(group, fits, strict=True) if not fit)
        kept = [pair for pair, fit in zip(group, fits, strict=True) if fit]
        if not kept:
            continue
        answers = [answers[0], *(answer for answer, fit in zip(answers[1:], fits, strict=True) if fit)]
        row = pack_answers(answers[0], answers[1:])
        lengths = [answer.tokens for answer in answers]
        items.append(PackedItem(row, lengths, [pair["id"] for pair in kept], [pair["aspect"] for pair in kept]))
    return items, too_long


def _check(pair: Record, where: str) -> None:
    for key in ("id", "aspect", "prompt", "chosen", "rejected"):
        if not isinstance(pair.get(key), str):
            raise InputError(f"{where} has no text {key!r}: KC pairs have id, item, aspect, prompt, chosen, rejected")
    for key in ("prompt", "chosen", "rejected"):
        if not pair[key].strip():
            raise InputError(f"{where} ({pair['id']}): {key!r} is empty: remove the pair")
    if pair["chosen"] == pair["rejected"]:
        raise InputError(f"{where} ({pair['id']}): chosen and rejected are equal, there is nothing to learn: remove the pair")
