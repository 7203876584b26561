"""Steps and micro-batches counted in pairs."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from kt.pair_batches import PairBatches
from kt.train_config import read_experiment, trainer_settings

SIZES = [3, 1, 2, 3, 3, 1, 5, 2, 3, 1]
CONFIGS = sorted(
    path for path in (Path(__file__).parents[1] / "configs").glob("*.yaml") if "16 pairs a step" in path.read_text()
)


def counted(batch: list[int], sizes: list[int]) -> int:
    return sum(sizes[index] for index in batch)


def steps(sizes: list[int], pairs: int, ranks: int, parts: int) -> list[list[int]]:
    """Return each step's items, over all ranks and micro-batches."""
    shares = [list(PairBatches(sizes, pairs, 42, rank, ranks, parts)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(PairBatches(sizes, pairs, 42, 0, ranks, parts))}
    columns = list(zip(*shares, strict=True))
    return [list(itertools.chain(*itertools.chain(*columns[at : at + parts]))) for at in range(0, len(columns), parts)]


@pytest.mark.parametrize(("pairs", "ranks", "parts"), [(1, 1, 1), (3, 1, 2), (2, 8, 1), (100, 2, 2)])
def test_every_item_is_in_one_micro_batch(pairs: int, ranks: int, parts: int) -> None:
    found = steps(SIZES, pairs, ranks, parts)
    assert sorted(itertools.chain(*found)) == list(range(len(SIZES)))
    assert all(found)


def test_there_are_shipped_configs() -> None:
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_step_of_a_shipped_config_has_16_pairs_for_the_method_and_its_ablations(path: Path) -> None:
    config = read_experiment(path)
    ranks = config.processes * int(config.torchrun.get("nnodes", 1))
    draw = random.Random(1)
    some_lack_pairs = [draw.choice([1, 3, 3, 3]) for _ in range(800)]
    for baseline, sizes in [(None, [3] * 800), (None, [2] * 800), (None, some_lack_pairs), ("rlaif", [1] * 800)]:
        said = trainer_settings(config, "kc", baseline)
        found = steps(sizes, said["per_device_train_batch_size"], ranks, said["gradient_accumulation_steps"])
        counts = [counted(step, sizes) for step in found]
        assert all(13 <= count <= 19 for count in sorted(counts)[1:])
        assert abs(len(counts) - sum(sizes) / 16) <= 1, "16 on average"


def test_the_micro_batches_of_a_step_are_as_equal_as_whole_items_let_them_be() -> None:
    micro = list(PairBatches([3] * 160, 8, 42, parts=2))
    assert {counted(batch, [3] * 160) for batch in micro} <= {6, 9}


def test_an_epoch_has_an_order_of_its_own_and_as_many_micro_batches() -> None:
    batches = PairBatches(SIZES, 2, 42, parts=2)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    assert sorted(batches) == sorted(first)
    assert len(first) == len(batches)
    assert list(PairBatches(SIZES, 2, 42, parts=2)) == first


@pytest.mark.parametrize("sizes", [SIZES, [3]], ids=["many items", "fewer items than processes"])
def test_a_step_is_the_same_on_any_number_of_processes(sizes: list[int]) -> None:
    whole = list(PairBatches(sizes, 4, 42, 0, 1, 4))
    shares = [list(PairBatches(sizes, 4, 42, rank, 4, 1)) for rank in range(4)]
    assert list(itertools.chain(*zip(*shares, strict=True))) == whole
    two = [list(PairBatches(sizes, 4, 42, rank, 2, 2)) for rank in range(2)]
    assert list(itertools.chain(*zip(*two, strict=True))) == whole
