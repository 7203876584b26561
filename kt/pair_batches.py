"""Steps of packed items that are counted in pairs, the same whatever the number of processes that share them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler


class PairBatches(Sampler[list[int]]):
    """Yields items' indices, a micro-batch at a time: `parts` to a step of the optimiser, on each of `ranks` processes.

    A step has `pairs` x parts x ranks pairs, as nearly as whole items can be had: what one step has too many, the next has
    too few, so that the mean is exact whatever the items' sizes; the last has the rest. Its items are spread evenly over
    its micro-batches; where there are fewer items, some micro-batches are empty. Steps are drawn once, so that every epoch
    has as many; each epoch shuffles their order.
    """

    def __init__(self, sizes: Sequence[int], pairs: int, seed: int, rank: int = 0, ranks: int = 1, parts: int = 1) -> None:
        self.seed, self.rank, self.ranks, self.parts = seed, rank, ranks, parts
        drawn = _drawn(sizes, pairs * parts * ranks, random.Random(f"{seed}:batches"))
        self.steps = [_spread(step, sizes, parts * ranks) for step in drawn]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.steps)
        random.Random(f"{self.seed}:order:{self.epoch}").shuffle(order)
        return (part for step in order for part in step[self.rank :: self.ranks])

    def __len__(self) -> int:
        return len(self.steps) * self.parts


def _drawn(sizes: Sequence[int], pairs: int, draw: random.Random) -> list[list[int]]:
    """Lay the items end to end in a random order and cut every `pairs` pairs: an item goes where its middle lies."""
    order = list(range(len(sizes)))
    draw.shuffle(order)
    steps: dict[int, list[int]] = {}
    before = 0
    for index in order:
        steps.setdefault((2 * before + sizes[index]) // (2 * pairs), []).append(index)
        before += sizes[index]
    return list(steps.values())


def _spread(step: Sequence[int], sizes: Sequence[int], count: int) -> list[list[int]]:
    """Give each item, the largest first, to the micro-batch that has the fewest pairs."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(step, key=lambda index: -sizes[index]):
        min(parts, key=lambda part: sum(sizes[i] for i in part)).append(index)
    return parts


class PairLoader(DataLoader[Any]):
    """A DataLoader that hands the epoch on to its batches."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        batches: Any = self.batch_sampler
        batches.set_epoch(epoch)
