"""Batches counted in pairs."""

from __future__ import annotations

import itertools

import pytest

from kt.pair_batches import PairBatches

SIZES = [3, 1, 2, 3, 3, 1, 5, 2, 3, 1]


@pytest.mark.parametrize("pairs", [1, 3, 6, 100])
def test_every_item_is_in_one_batch_and_no_batch_of_several_is_too_large(pairs):
    batches = list(PairBatches(SIZES, pairs, 42))
    assert sorted(itertools.chain(*batches)) == list(range(len(SIZES)))
    assert all(len(batch) == 1 or sum(SIZES[i] for i in batch) <= pairs for batch in batches)


def test_an_epoch_has_an_order_of_its_own_and_as_many_batches():
    batches = PairBatches(SIZES, 4, 42)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    assert len(list(batches)) == len(first) == len(batches)
    assert list(PairBatches(SIZES, 4, 42)) == first


def test_ranks_share_the_batches_of_one_process_evenly():
    whole = list(PairBatches(SIZES, 4, 42))
    shares = [list(PairBatches(SIZES, 4, 42, rank, 2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(PairBatches(SIZES, 4, 42, 0, 2))
    together = [batch for pair in zip(*shares, strict=True) for batch in pair]
    assert together[: len(whole)] == whole
    assert together[len(whole) :] == whole[: len(together) - len(whole)]
