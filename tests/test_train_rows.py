"""Rows for supervised training: what is a target, what is held out, what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt.errors import InputError
from kt.records import write_jsonl
from kt.template import ALPACA

transformers = pytest.importorskip("transformers")

from kt.train_rows import IGNORED, encode_rows, hold_out, read_answers, refuse_or_drop  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


def row(number: int, suffix: str = "") -> dict[str, str]:
    return {"id": f"q{number}{suffix}", "prompt": f"Who keeps bridge {number}?", "completion": f"The keeper of {number}."}


def test_the_answer_and_its_eos_are_targets_and_the_prompt_is_not(tokenizer) -> None:
    made, too_long = encode_rows(tokenizer, [row(1)], "alpaca", 1024)
    ids, labels = made[0]["input_ids"], made[0]["labels"]
    first = labels.index(next(label for label in labels if label != IGNORED))
    assert not too_long
    assert tokenizer.decode(ids[:first]) == ALPACA.replace("{question}", "Who keeps bridge 1?")
    assert ids[first:] == labels[first:]
    assert tokenizer.decode(labels[first:]) == "The keeper of 1." + tokenizer.eos_token


def test_the_rows_of_an_item_are_held_out_together(tokenizer) -> None:
    rows = [row(number, suffix) for number in range(20) for suffix in ("", "/fine")]
    made, _ = encode_rows(tokenizer, rows, "alpaca", 1024)
    kept, apart = hold_out(made, 5, 42)
    assert len(apart) == 10
    assert not {one["item"] for one in kept} & {one["item"] for one in apart}
    assert hold_out(made, 5, 42) == (kept, apart)
    assert hold_out(made, 5, 43)[1] != apart
    assert hold_out(made, 0, 42) == (made, [])


def test_rows_that_do_not_fit_are_named_or_dropped(tokenizer) -> None:
    long = {**row(2), "completion": "The keeper. " * 300}
    made, too_long = encode_rows(tokenizer, [row(1), long], "alpaca", 200)
    assert [one["item"] for one in made] == ["q1"]
    refuse_or_drop(too_long, 200, "drop")
    with pytest.raises(InputError, match=r"1 rows have more than 200 tokens \(q2\): raise max_length"):
        refuse_or_drop(too_long, 200, "error")


@pytest.mark.parametrize("change", [{"completion": " "}, {"completion": None}, {"prompt": ""}])
def test_an_empty_row_is_named(tmp_path: Path, change: dict) -> None:
    write_jsonl(tmp_path / "sft.jsonl", [row(1), {**row(2), **change}])
    with pytest.raises(InputError, match=rf"sft.jsonl:2 \(q2\): '{next(iter(change))}' is missing or empty"):
        read_answers(tmp_path / "sft.jsonl")
    write_jsonl(tmp_path / "none.jsonl", [])
    with pytest.raises(InputError, match="has no rows: build the data first"):
        read_answers(tmp_path / "none.jsonl")
