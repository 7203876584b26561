"""A step sends exactly what is missing and writes the same bytes however it came to its answers."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Running, scripted_server

from kt import augment, compare
from kt.cache import Cache
from kt.cache_admin import prune
from kt.client import Client
from kt.endpoint import Endpoint
from kt.errors import MissError
from kt.pipeline import Step, StepResult, run_step
from kt.prompts import load_prompts
from kt.records import read_jsonl, write_jsonl
from kt.request import Completion

PROMPTS = load_prompts("compact")
ITEMS = [{"id": f"q{i}", "question": f"What of {i}?", "answer": f"First of {i}. Second of {i}. Third."} for i in range(200)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with scripted_server(tmp_path / "server") as running:
        yield running


class Bench:
    """A folder, a cache and a server for steps to be run on."""

    def __init__(self, folder: Path, *urls: str, workers: int = 16) -> None:
        self.folder, self.urls, self.workers = folder, urls, workers

    def run(self, step: Step, items: list[dict[str, Any]], name: str = "out", **options: Any) -> StepResult:
        source = self.folder / f"{name}-items.jsonl"
        write_jsonl(source, items)
        endpoints = [
            Endpoint("openai", [url], f"m{n}", fallback=n > 0, retries=0, timeout=5.0) for n, url in enumerate(self.urls)
        ]
        cache = Cache(self.folder / "c.sqlite")
        with cache, Client(cache, endpoints, options.pop("workers", self.workers)) as client:
            return run_step(step, lambda: read_jsonl(source), [source], self.folder / name, client, **options)


def extract(**changes: Any) -> Step:
    return dataclasses.replace(augment.extract(PROMPTS["extract"], 42, 3), **changes)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def test_the_same_bytes_at_any_concurrency_and_in_replay(server: Running, tmp_path: Path) -> None:
    many = Bench(tmp_path / "a", server.url, workers=64)
    one = Bench(tmp_path / "b", server.url, workers=1)
    many.run(extract(), ITEMS)
    one.run(extract(), ITEMS)
    many.run(extract(), ITEMS, name="replay", replay=True)
    assert files(tmp_path / "a/out") == files(tmp_path / "b/out") == files(tmp_path / "a/replay")
    assert len(server.received()) == 400
    manifest = json.loads((tmp_path / "a/out/manifest.json").read_text())
    assert (manifest["read"], manifest["written"], manifest["models"][0]["completions"]) == (200, 200, 200)


def test_editing_one_item_asks_once_and_shuffling_asks_nothing(server: Running, tmp_path: Path) -> None:
    bench = Bench(tmp_path, server.url)
    bench.run(extract(), ITEMS)
    edited = [{**item, "answer": "Another answer. Indeed."} if item["id"] == "q77" else item for item in ITEMS]
    bench.run(extract(), edited)
    assert len(server.received()) == 201
    shuffled = random.Random(1).sample(edited, len(edited))
    bench.run(extract(), shuffled)
    assert len(server.received()) == 201


def test_a_parser_change_sends_nothing_and_a_prompt_change_what_it_changes(server: Running, tmp_path: Path) -> None:
    bench = Bench(tmp_path, server.url)
    bench.run(extract(), ITEMS)
    plain = extract().parse

    def louder(record: dict[str, Any], completions: Any) -> list[dict[str, Any]]:
        return [{**r, "facts": [f.upper() for f in r["facts"]]} for r in plain(record, completions)]

    bench.run(extract(parse=louder), ITEMS)
    assert len(server.received()) == 200
    assert next(read_jsonl(tmp_path / "out/records.jsonl"))["facts"][0] == "FIRST OF 0."
    tuned = dataclasses.replace(PROMPTS["extract"], params={**PROMPTS["extract"].params, "max_tokens": 99})
    bench.run(augment.extract(tuned, 42, 3), ITEMS[:10])
    assert len(server.received()) == 210


def test_two_like_questions_are_asked_once(server: Running, tmp_path: Path) -> None:
    twins = [{**ITEMS[0], "id": f"twin-{i}"} for i in range(50)]
    result = Bench(tmp_path, server.url).run(extract(), twins)
    assert result.written == 50
    assert len(server.received()) == 1


def test_a_bad_answer_is_asked_again_with_the_next_sample_then_rejected(server: Running, tmp_path: Path) -> None:
    def never(record: dict[str, Any], completions: list[Completion]) -> list[dict[str, Any]]:
        raise augment.BadAnswer("not good enough")

    bench = Bench(tmp_path, server.url)
    for _ in range(2):
        result = bench.run(extract(parse=never), ITEMS[:5])
        assert (result.written, result.rejected) == (0, 5)
        assert len(server.received()) == 15
    rejects = list(read_jsonl(tmp_path / "out/rejected.jsonl"))
    assert rejects[0]["reason"] == "not good enough (3 tries)"
    assert rejects[0]["record"] == ITEMS[0]
    with Cache(tmp_path / "c.sqlite") as cache:
        samples = cache.db.execute("SELECT sample, count(*) FROM completions GROUP BY 1").fetchall()
    assert samples == [(0, 5), (1, 5), (2, 5)]


def test_answers_that_stay_invalid_go_to_the_fallback_under_its_own_key(server: Running, tmp_path: Path) -> None:
    with scripted_server(tmp_path / "bad", "--mode", "garbage") as bad:
        bench = Bench(tmp_path, bad.url, server.url)
        result = bench.run(extract(), ITEMS[:7])
        assert (result.written, len(bad.received()), len(server.received())) == (7, 21, 7)
        bench.run(extract(), ITEMS[:7], name="again")
        assert (len(bad.received()), len(server.received())) == (21, 7)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["models"][0]["model"] == "m1"
    with Cache(tmp_path / "c.sqlite") as cache:
        counts = cache.db.execute("SELECT model, status, count(*) FROM completions GROUP BY 1, 2").fetchall()
        assert counts == [("m0", "invalid", 21), ("m1", "ok", 7)]
        # What the fallback answered can be taken out, for the local model to answer.
        prune(cache, model="m1")
        prune(cache, model="m0")
    with scripted_server(tmp_path / "good") as good:
        Bench(tmp_path, good.url, server.url).run(extract(), ITEMS[:7], name="local")
        assert (len(good.received()), len(server.received())) == (7, 7)
    assert files(tmp_path / "local")["records.jsonl"] == files(tmp_path / "out")["records.jsonl"]


def test_a_dead_server_is_passed_over_when_there_is_a_fallback(server: Running, tmp_path: Path) -> None:
    bench = Bench(tmp_path, "http://127.0.0.1:9/v1", server.url)
    assert bench.run(extract(), ITEMS[:20]).written == 20
    assert bench.run(extract(), ITEMS[:20], name="replay", replay=True).written == 20
    assert files(tmp_path / "out") == files(tmp_path / "replay")


def test_a_replay_says_how_much_is_missing(server: Running, tmp_path: Path) -> None:
    bench = Bench(tmp_path, server.url)
    bench.run(extract(), ITEMS[:50])
    before = files(tmp_path / "out")
    with pytest.raises(
        MissError, match=r"step extract: the cache lacks 30 completion\(s\).*first keys: [0-9a-f]{16}, "
    ) as caught:
        bench.run(extract(), ITEMS[:80], replay=True)
    assert caught.value.exit_code == 3
    assert files(tmp_path / "out") == before
    assert not (tmp_path / "out/manifest.json").exists()
    assert len(server.received()) == 50


def test_a_refused_context_is_rejected_with_the_servers_words(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "s", "--mode", "too-long") as server:
        result = Bench(tmp_path, server.url).run(extract(), ITEMS[:3])
        assert (result.rejected, len(server.received())) == (3, 3)
    assert "maximum context length" in next(read_jsonl(tmp_path / "out/rejected.jsonl"))["reason"]


# ---- stage I and stage II, rule by rule ------------------------------------------------------------------------------


def completion(text: str) -> Completion:
    return Completion("k", text, "ok", "m", "stop", "m", 1, 1, 0.0)


def facts(count: int, name: str = "x") -> dict[str, Any]:
    return {"id": name, "question": "Q?", "answer": "A.", "facts": [f"Fact {i}." for i in range(count)]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no list"),
        ('{"facts": []}', "no facts"),
        ('{"facts": ["a", " "]}', "empty one"),
        ('{"facts": ["a", 1]}', "no list"),
        ("nonsense", "not JSON"),
        ('{"facts": ["a\\u0000b"]}', "empty one|no facts"),
    ],
)
def test_facts_are_checked(text: str, words: str) -> None:
    with pytest.raises(augment.BadAnswer, match=words):
        augment.facts_of(completion(text))


def test_thoughts_are_left_out_of_texts() -> None:
    assert augment.text_of(completion("<think>hm\n</think>\n\nAn answer. ")) == "An answer."
    for empty in ("", "  \n", "<think>x</think>"):
        with pytest.raises(augment.BadAnswer):
            augment.text_of(completion(empty))


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
@pytest.mark.parametrize("mode", ["ppl", "random"])
def test_the_difficult_share_is_rounded_up_in_original_order(count: int, kept: int, mode: str) -> None:
    from kt.perplexity import choose_difficult

    record = {**facts(count), "perplexities": [float((i * 7) % 5) for i in range(count)]}
    (made,) = augment.choose(mode, 0.5, 42, choose_difficult).parse(record, ())
    assert len(made["facts"]) == kept
    assert made["kept"] == sorted(made["kept"])
    assert made["facts"] == [record["facts"][i] for i in made["kept"]]


@pytest.mark.parametrize(("count", "left"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_half_is_deleted_rounded_down_and_order_kept(count: int, left: int) -> None:
    (made,) = compare.delete(0.5, 42).parse(facts(count), ())
    assert len(made["facts"]) == left
    assert made["facts"] == sorted(made["facts"])
    assert made["answer"] == " ".join(made["facts"])


def test_a_shuffle_keeps_all_and_changes_the_order() -> None:
    for number in range(200):
        record = facts(2 + number % 4, f"q{number}")
        (made,) = compare.shuffle(42).parse(record, ())
        assert sorted(made["facts"]) == sorted(record["facts"])
        assert made["facts"] != record["facts"]


def test_one_fact_or_all_alike_makes_no_pair() -> None:
    for step in (compare.delete(0.5, 42), compare.shuffle(42)):
        with pytest.raises(compare.Reject, match="one fact only"):
            step.parse(facts(1), ())
    with pytest.raises(compare.Reject, match="all facts are the same"):
        compare.shuffle(42).parse({**facts(2), "facts": ["a", "a"]}, ())


def test_adding_a_record_moves_no_other() -> None:
    alone = compare.shuffle(42).parse(facts(6, "q1"), ())
    compare.shuffle(42).parse(facts(6, "q0"), ())
    assert compare.shuffle(42).parse(facts(6, "q1"), ()) == alone
    orders = {str(compare.shuffle(seed).parse(facts(6, "q1"), ())) for seed in range(20)}
    assert len(orders) > 10


def test_revised_facts_are_as_many_and_each_changed() -> None:
    step = compare.revise(PROMPTS["revise"], 42, 3)
    (made,) = step.parse(facts(2), [completion('{"facts": ["Wrong 0.", "Wrong 1."]}')])
    assert made["answer"] == "Wrong 0. Wrong 1."
    with pytest.raises(compare.BadAnswer, match="1 revised facts for 2"):
        step.parse(facts(2), [completion('{"facts": ["Wrong 0."]}')])
    with pytest.raises(compare.BadAnswer, match="1 of 2 facts unchanged"):
        step.parse(facts(2), [completion('{"facts": ["fact  0.", "Wrong 1."]}')])


def test_pairs_by_aspect() -> None:
    items = [facts(3, "a"), facts(1, "b"), facts(2, "c")]
    better = [{"id": "a", "answer": "Good A."}, {"id": "c", "answer": "Fact 0. Fact 1."}]
    worse = {
        "completeness": [{"id": "a", "answer": "Fact 0."}, {"id": "c", "answer": "fact 0.  Fact 1."}],
        "factuality": [{"id": "b", "answer": "Wrong."}, {"id": "c", "answer": "Wrong."}],
    }
    found = list(compare.pairs(items, better, worse))
    assert [(p["id"], p["chosen"], p["rejected"]) for p in found] == [
        ("a/completeness", "Good A.", "Fact 0."),
        ("c/factuality", "Fact 0. Fact 1.", "Wrong."),
    ]
    assert found[0] == {**found[0], "item": "a", "aspect": "completeness", "prompt": "Q?"}
