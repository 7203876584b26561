"""Batches of packed items that are counted in pairs, the same whatever the number of processes that share them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler


class PairBatches(Sampler[list[int]]):
    """Yields items' indices, as many to a batch as have `pairs` pairs at most, and one at least.

    The batches are drawn once, so that every epoch has as many; each epoch shuffles their order. Of W ranks, rank r gets
    batches r, r + W, r + 2W, ...; where they do not come out even, the epoch's first ones are repeated.
    """

    def __init__(self, sizes: Sequence[int], pairs: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.batches = _drawn(sizes, pairs, random.Random(f"{seed}:batches"))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batches)
        random.Random(f"{self.seed}:order:{self.epoch}").shuffle(order)
        order += order[: -len(order) % self.ranks]
        return iter(order[self.rank :: self.ranks])

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.ranks)


def _drawn(sizes: Sequence[int], pairs: int, draw: random.Random) -> list[list[int]]:
    order = list(range(len(sizes)))
    draw.shuffle(order)
    batches: list[list[int]] = []
    count = pairs
    for index in order:
        if count + sizes[index] > pairs:
            batches.append([])
            count = 0
        batches[-1].append(index)
        count += sizes[index]
    return batches


class PairLoader(DataLoader[Any]):
    """A DataLoader that hands the epoch on to its batches."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        batches: Any = self.batch_sampler
        batches.set_epoch(epoch)
