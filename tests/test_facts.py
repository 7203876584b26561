"""Fact counts by hand, against gold answers, the checker's knowledge and a document collection; answers and items joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import scripted_server

from kt import facts
from kt.answers import figures, is_refusal, join, read_answers
from kt.cache import Cache
from kt.client import Client
from kt.demo.oracle import count_facts
from kt.demo.world import make_world
from kt.endpoint import Endpoint
from kt.errors import InputError
from kt.evidence import PASSAGE_WORDS, Collection
from kt.pipeline import run_step
from kt.prompts import load_prompts
from kt.records import read_jsonl, write_jsonl

pytest.importorskip("scipy")

GOLD = "Belmora is old. Belmora has a harbour. Belmora makes wool."
ITEMS = [
    {
        "id": "q1",
        "question": "Belmora?",
        "gold": GOLD,
        "answers": {"kt": "Belmora is old. Belmora has a harbour. Belmora is rich.", "sft": "Belmora is old. Belmora is OLD."},
    },
    {"id": "q2", "question": "Again?", "gold": GOLD, "answers": {"kt": " ", "sft": "Belmora is wrong. Belmora makes wool."}},
]


def counted(folder: Path, evidence: facts.Evidence, items: list[dict[str, Any]] = ITEMS) -> list[dict[str, Any]]:
    """Split and check with the scripted server; one row an answer."""
    write_jsonl(folder / "items.jsonl", items)
    prompts, names = load_prompts("compact"), list(items[0]["answers"])
    splits = folder / "split/records.jsonl"
    with (
        scripted_server(folder) as server,
        Cache(folder / "c.sqlite") as cache,
        Client(cache, [Endpoint("openai", [server.url], "m")]) as client,
    ):
        step = facts.split(prompts["extract"], 42, 3)
        run_step(step, lambda: facts.answers_of(items, names), [folder / "items.jsonl"], folder / "split", client)
        step = facts.check_fact(prompts["check-fact"], 42, 3)
        run_step(step, lambda: facts.statements(read_jsonl(splits), evidence), [splits], folder / "check", client)
    return facts.per_answer(read_jsonl(splits), read_jsonl(folder / "check/records.jsonl"))


def test_counts_against_the_gold_answer_are_those_counted_by_hand(tmp_path: Path) -> None:
    rows = counted(tmp_path, facts.gold_evidence)
    keys = ("id", "facts", "correct", "incorrect", "repeated", "correct_share")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("q1/kt", 3, 2, 1, 0, round(2 / 3, 6)),
        ("q1/sft", 1, 1, 0, 1, 1),
        ("q2/kt", 0, 0, 0, 0, None),
        ("q2/sft", 2, 1, 1, 0, 0.5),
    ]
    kt, sft = (facts.totals(rows, name, 0, 42) for name in ("kt", "sft"))
    assert (kt["correct"], kt["incorrect"], kt["correct_share"]["share"], kt["without_facts"]) == (2, 1, round(2 / 3, 6), 1)
    assert (sft["correct"], sft["incorrect"], sft["correct_share"]["share"], sft["repeated"]) == (2, 1, round(2 / 3, 6), 1)
    assert sft["correct_share_per_answer"]["mean"] == 0.75
    assert kt["correct_per_answer"]["mean"] == 1
    assert sft["correct_share"]["interval"] == [0.5, 1]


def test_every_verdict_keeps_its_text(tmp_path: Path) -> None:
    counted(tmp_path, facts.gold_evidence)
    checks = list(read_jsonl(tmp_path / "check/records.jsonl"))
    assert [check["id"] for check in checks][:3] == ["q1/kt/fact-1", "q1/kt/fact-2", "q1/kt/fact-3"]
    assert all(json.loads(check["texts"][0])["verdict"] == check["verdict"] for check in checks)


def test_without_evidence_the_checker_is_asked_alone(tmp_path: Path) -> None:
    rows = counted(tmp_path, facts.no_evidence)
    assert [(row["correct"], row["incorrect"]) for row in rows] == [(3, 0), (1, 0), (0, 0), (1, 1)]


def test_a_collection_gives_the_nearest_passages_and_names_them(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "a.txt").write_text("Belmora is old. " * 20 + "\n\n" + "Other towns are young. " * 40)
    (library / "b.jsonl").write_text(json.dumps({"title": "Wool", "text": "Belmora makes wool. Belmora is rich."}))
    with Collection([library]) as collection:
        rows = counted(tmp_path, facts.evidence_in(collection))
    assert [(row["correct"], row["incorrect"]) for row in rows] == [(2, 1), (1, 0), (0, 0), (1, 1)]
    checks = list(read_jsonl(tmp_path / "check/records.jsonl"))
    assert checks[-1]["passages"][0] == "library/b.jsonl:1"


def test_a_collection_takes_any_text_as_a_query_and_cuts_long_documents(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one two " * 200 + '\n\n"quoted" NEAR( AND')
    with Collection([tmp_path / "a.md"]) as collection:
        assert all(len(found.text.split()) <= PASSAGE_WORDS for found in collection.search("one", 10))
        assert [found.place for found in collection.search('"quoted" NEAR( OR ) -*^', 1)] == ["a.md:3"]
        assert collection.search("?!", 5) == []
        assert collection.search("absent", 5) == []
    (tmp_path / "b.jsonl").write_text('{"body": "x"}')
    (tmp_path / "empty").mkdir()
    for place, message in (("b.jsonl", 'without "text"'), ("gone", "no file or folder"), ("empty", "no file or folder")):
        with pytest.raises(InputError, match=message):
            Collection([tmp_path / place])


def test_counts_on_the_demo_world_are_the_oracles(tmp_path: Path) -> None:
    """With canonical sentences and a checker that reads the gold answer, kt counts what the oracle counts."""
    world = make_world(7, 12)
    made, wanted = [], []
    towns = list(world.entities.values())
    for number, town in enumerate(towns):
        gold = world_answer(town)
        other = world_answer(towns[number - 1]).split(". ")[0].replace(towns[number - 1].name, town.name)
        answer = f"{' '.join(s + '.' for s in gold.rstrip('.').split('. ')[:3])} {other.rstrip('.')}."
        made.append({"id": f"t{number}", "question": f"{town.name}?", "gold": gold, "answers": {"kt": answer}})
        found = count_facts(world, town.name, answer)
        wanted.append((found.correct, found.wrong, found.repeated))
    rows = counted(tmp_path, facts.gold_evidence, made)
    assert [(row["correct"], row["incorrect"], row["repeated"]) for row in rows] == wanted
    assert any(wrong for _, wrong, _ in wanted)


def world_answer(town: Any) -> str:
    from kt.demo.world import facts_of

    return " ".join(facts_of(town, list(town.values)))


# ---- answers and items -----------------------------------------------------------------------------------------------


def files(folder: Path, answers: list[dict[str, Any]]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    data = [{"id": i, "question": f"Q{i}?", "answer": f"Gold {i}."} for i in "abc"]
    (folder / "test.json").write_text(json.dumps([*data, {"id": "d", "question": "Q?", "answer": ""}]))
    write_jsonl(folder / "sft/records.jsonl", answers)
    return [str(folder / "test.json")], {"sft": read_answers("sft", folder / "sft")}


def answer(name: str, text: str = "x", question: str = "") -> dict[str, Any]:
    return {"id": name, "question": question or f"Q{name}?", "answer": text}


def test_items_without_gold_are_counted_rejects(tmp_path: Path) -> None:
    data, answers = files(tmp_path, [answer(i) for i in "abcd"])
    rejects: list[dict[str, Any]] = []
    found = list(join(data, answers, None, rejects.append))
    assert [item["id"] for item in found] == ["a", "b", "c"]
    assert found[0] == {"id": "a", "question": "Qa?", "gold": "Gold a.", "answers": {"sft": "x"}}
    assert [reject["reason"] for reject in rejects] == ["empty answer"]
    assert [item["id"] for item in join(data, answers, 2, rejects.append)] == ["a", "b"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([answer("a"), answer("c")], r"sft: no answer for 1 of 3 test items \(b\): every method must answer the same items"),
        ([answer(i) for i in "abcz"], r"sft: 1 answers to questions that the test data do not hold \(z\)"),
        ([answer("a"), answer("b", question="Why?"), answer("c")], r"sft: item b was asked 'Why\?', the test data ask 'Qb\?'"),
        ([answer("a"), answer("a")], "two answers for a"),
        ([{"id": "a", "text": "x"}], "without id or answer"),
        ([{"id": ["a"], "answer": "x"}], "without id or answer"),
        ([{"id": 7, "answer": "x"}], "questions that the test data do not hold \\(7\\)|no answer for"),
        ([answer("a", "\0")], "NUL byte"),
        ([], "no answers of sft"),
    ],
)
def test_answers_that_do_not_belong_are_an_error_with_their_ids(
    tmp_path: Path, answers: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(join(*files(tmp_path, answers), None, lambda _: None))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I don't know.", True),
        ("Unfortunately, I cannot say.", True),
        ("I am unable to answer.", True),
        ("Sorry is a word of regret.", False),
        ("The AI winter was long.", False),
        ("I do not have any information on that.", True),
        ("I can't really provide that.", True),
        ("I can tell you that Belmora is old.", False),
        ("I can't stress enough how old it is.", False),
        ("I cannot recommend this enough.", False),
        ("I won't lie, it is 5.", False),
        ("I do not have a favourite; but blue is fine.", False),
        ("", False),
    ],
)
def test_refusals(text: str, refusal: bool) -> None:
    assert is_refusal(text) is refusal


def test_lengths_and_refusals_stand_beside_every_number() -> None:
    found = figures([{"answers": {"kt": text}} for text in ("one two three", "", "I don't know.")], "kt", 42)
    assert (found["answers"], found["words"]["mean"], found["empty"]) == (3, 2, 1)
    assert (found["refusals"]["count"], found["refusals"]["share"]) == (1, round(1 / 3, 6))
