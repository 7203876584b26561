"""The student reads a world's documents and nothing else, and half-knows them; what is shipped is what the recipe says."""

import collections
import dataclasses
import itertools
import json

import pytest

from kt.demo.world import documents, make_world

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from kt.demo.student import SHIPPED, Reading, read_rows, recall, train_and_examine  # noqa: E402
from kt.demo.teacher import SHIPPED_TEACHER  # noqa: E402
from kt.models import load_tokenizer  # noqa: E402
from kt.weights import fingerprint  # noqa: E402

SMALL = Reading(world=5, towns=4, steps=20, batch=2, length=40, hidden=32, layers=1, heads=2)


def test_rows_hold_every_document_once_before_any_comes_again():
    tokenizer, world = load_tokenizer(SHIPPED_TEACHER), make_world(5, 4)
    texts = collections.Counter(documents(world))
    read = itertools.chain.from_iterable(itertools.islice(read_rows(world, tokenizer, SMALL), 200))
    found = tokenizer.decode(list(read)).split(tokenizer.eos_token)
    rounds = [found[start : start + texts.total()] for start in range(0, 3 * texts.total(), texts.total())]
    bodies = [[text.partition("\n")[2] for text in one] for one in rounds]
    assert [collections.Counter(one) for one in bodies] == [texts] * 3
    assert bodies[0] != bodies[1]
    for text in found[: 3 * texts.total()]:
        heading, _, body = text.partition("\n")
        assert body.split(" ", 1)[0] in heading


def test_the_same_recipe_gives_the_same_weights_and_says_what_it_left(tmp_path):
    said = train_and_examine(tmp_path / "one", SMALL)
    train_and_examine(tmp_path / "two", SMALL)
    assert said == json.loads((tmp_path / "one" / "training.json").read_bytes())
    for name in ("model.safetensors", "training.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert said["loss"]["20"] < said["loss"]["1"]
    asked = collections.Counter(times for town in make_world(5, 4).entities.values() for times in town.mentions.values())
    assert {times: found["asked"] for times, found in said["recall by mentions"].items()} == {
        str(times): 3 * facts for times, facts in sorted(asked.items())
    }


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_shipped_weights_are_those_of_the_committed_recipe(folder):
    said = json.loads((folder / "training.json").read_bytes())
    assert said["recipe"] == dataclasses.asdict(SHIPPED[folder])
    assert said["fingerprint"] == fingerprint(folder)


def test_the_shipped_students_are_small():
    assert sum(path.stat().st_size for folder in SHIPPED for path in folder.iterdir()) < 12_000_000


def test_a_shipped_student_knows_what_it_read_often_better_than_what_it_read_once():
    folder, reading = next(iter(SHIPPED.items()))
    found = recall(folder, make_world(reading.world, 12))
    shares = [found[times].right / found[times].asked for times in (1, 3, 8)]
    assert shares == sorted(shares)
    assert shares[0] < shares[2] - 0.1
