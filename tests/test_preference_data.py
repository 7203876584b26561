"""Pair files into packed items, and the pair files that are refused."""

import pytest
from tiny_models import make_llama
from transformers import AutoTokenizer

from kt.errors import InputError
from kt.preference_data import pack_pairs, read_pairs
from kt.records import write_jsonl


def pair(number, aspect="factuality", **changes):
    base = {"id": f"q{number}/{aspect}", "item": f"q{number}", "aspect": aspect, "prompt": f"Who keeps bridge {number}?"}
    return {**base, "chosen": "The keeper.", "rejected": f"A sailor, not by {aspect}.", **changes}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_llama(tmp_path_factory.mktemp("llama")))


def test_pairs_of_one_item_share_a_row(tokenizer):
    items, _ = pack_pairs(tokenizer, [pair(1), pair(2), pair(1, "logicality")])
    assert [item.ids for item in items] == [["q1/factuality", "q1/logicality"], ["q2/factuality"]]
    assert [item.aspects for item in items] == [["factuality", "logicality"], ["factuality"]]
    assert [len(item.lengths) for item in items] == [3, 2]
    assert all(len(item.row.sources) == sum(item.lengths) for item in items)


def test_pairs_that_are_too_long_are_left_out_and_named(tokenizer):
    items, too_long = pack_pairs(tokenizer, [pair(1, rejected="A long letter. " * 100), pair(2)], max_length=200)
    assert too_long == ["q1/factuality"]
    assert [item.ids for item in items] == [["q2/factuality"]]


def test_an_item_keeps_the_pairs_that_fit(tokenizer):
    long = "A long letter. " * 100
    pairs = [pair(1), pair(1, "logicality", rejected=long), pair(1, "completeness"), pair(2, chosen=long)]
    items, too_long = pack_pairs(tokenizer, pairs, max_length=200)
    assert too_long == ["q1/logicality", "q2/factuality"]
    assert [(item.ids, item.aspects) for item in items] == [
        (["q1/factuality", "q1/completeness"], ["factuality", "completeness"])
    ]
    assert items == pack_pairs(tokenizer, [pair(1), pair(1, "completeness")])[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": "The keeper."}, r"pair 2 \(q2/factuality\): chosen and rejected are equal"),
        ({"chosen": "  "}, r"pair 2 \(q2/factuality\): 'chosen' is empty"),
        ({"aspect": None}, "pair 2 has no text 'aspect'"),
    ],
)
def test_a_bad_pair_is_refused_by_name(tmp_path, changes, message):
    write_jsonl(tmp_path / "pairs.jsonl", [pair(1), pair(2, **changes)])
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")
