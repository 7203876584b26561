"""Judging: the rules by hand, a judge that only sees places, answers that are no verdict; every call through the cache."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from scripted_server import scripted_server

from kt.cache import Cache
from kt.client import Client
from kt.endpoint import Endpoint
from kt.intervals import mean, ratio
from kt.judge import CRITERIA, judge_pair, judge_single, mean_scores, outcome_of, pairs, singles, tally
from kt.pipeline import run_step
from kt.prompts import load_prompts
from kt.records import read_jsonl, write_jsonl

pytest.importorskip("scipy")

# Written down by hand: what the two orders say of `one` (A means `one` in the first order, `other` in the second).
BY_HAND = {
    ("A", "B"): ("win", "win"),
    ("A", "tie"): ("win", "tie"),
    ("A", "A"): ("tie", "tie"),
    ("tie", "B"): ("win", "tie"),
    ("tie", "tie"): ("tie", "tie"),
    ("tie", "A"): ("lose", "tie"),
    ("B", "B"): ("tie", "tie"),
    ("B", "tie"): ("lose", "tie"),
    ("B", "A"): ("lose", "lose"),
}


def test_the_table_holds_every_case() -> None:
    assert set(BY_HAND) == set(itertools.product(("A", "B", "tie"), repeat=2))


@pytest.mark.parametrize("verdicts", BY_HAND, ids="-".join)
def test_rules_by_hand(verdicts: tuple[str, str]) -> None:
    default, strict = BY_HAND[verdicts]
    assert outcome_of(verdicts, "default") == default
    assert outcome_of(verdicts, "strict") == strict


def verdict(number: int, verdicts: tuple[str, str], decided_by: str = "judge") -> dict[str, Any]:
    return {
        "id": str(number),
        "one": "x",
        "other": "y",
        "criterion": "factuality",
        "verdicts": list(verdicts),
        "decided_by": decided_by,
    }


def test_a_table_counted_by_hand_in_both_rules() -> None:
    """Nine judged pairs, one of each case, and one that was empty: 4 wins, 3 ties, 3 losses; strict 2, 7, 1."""
    records = [verdict(i, case) for i, case in enumerate(BY_HAND)] + [verdict(9, ("A", "B"), "empty answer")]
    rejects = [{"record": verdict(10, ("A", "A"))}]
    for rule, wanted in (("default", [4, 3, 3]), ("strict", [2, 7, 1])):
        [row] = tally(records, rejects, rule, 42)  # type: ignore[arg-type]
        assert [row[name]["count"] for name in ("win", "tie", "lose")] == wanted
        assert [row[name]["share"] for name in ("win", "tie", "lose")] == [n / 10 for n in wanted]
        assert (row["pairs"], row["judged"], row["rejected"]) == (10, 9, 1)
        assert (row["always_first"], row["always_second"], row["position_bias"]) == (1, 1, round(2 / 9, 6))
        assert row["without_judge"] == {"empty answer": 1}
        for name in ("win", "tie", "lose"):
            low, high = row[name]["interval"]
            assert 0 <= low <= row[name]["share"] <= high <= 1


def items(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "question": f"What of {i}?", "answers": {"kt": "It is one. " * (i + 2), "sft": "It is one."}}
        for i in range(count)
    ]


def judged(folder: Path, made: list[dict[str, Any]], *options: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Judge items with the scripted server: verdicts, rejects, and how many requests arrived."""
    source = folder / "items.jsonl"
    write_jsonl(source, made)
    step = judge_pair(load_prompts("compact")["judge-pair"], 42, 3)
    with scripted_server(folder, *options) as server, Cache(folder / "c.sqlite") as cache:
        backend = Endpoint("openai", [server.url], "m")
        with Client(cache, [backend]) as client:
            inputs = lambda: pairs(read_jsonl(source), [("kt", "sft")], CRITERIA)  # noqa: E731
            run_step(step, inputs, [source], folder / "judge", client)
        arrived = len(server.received())
    return list(read_jsonl(folder / "judge/records.jsonl")), list(read_jsonl(folder / "judge/rejected.jsonl")), arrived


def test_a_judge_that_sees_the_answers_has_no_position_bias(tmp_path: Path) -> None:
    records, rejects, arrived = judged(tmp_path, items())
    table = tally(records, rejects, "strict", 42)
    assert [row["criterion"] for row in table] == list(CRITERIA)
    assert all(row["win"]["count"] == 6 and row["position_bias"] == 0 for row in table)
    assert all(row["win"]["interval"] == [1, 1] for row in table)
    assert arrived == 6 * 3 * 2
    assert records[0]["texts"] == ['{"verdict": "A"}', '{"verdict": "B"}']


def test_a_judge_that_always_says_a_is_all_ties_and_full_position_bias(tmp_path: Path) -> None:
    records, rejects, _ = judged(tmp_path, items(), "--judge", "first")
    for rule in ("default", "strict"):
        for row in tally(records, rejects, rule, 42):  # type: ignore[arg-type]
            assert (row["win"]["count"], row["tie"]["count"], row["lose"]["count"]) == (0, 6, 0)
            assert (row["position_bias"], row["always_first"]) == (1, 6)


def test_what_is_no_verdict_is_asked_again_and_then_a_counted_reject(tmp_path: Path) -> None:
    records, rejects, arrived = judged(tmp_path, items(2), "--judge", "none")
    assert records == []
    assert len(rejects) == 6
    assert arrived == 6 * 2 * 3
    assert "invalid answer (3 tries)" in rejects[0]["reason"]
    table = tally(records, rejects, "default", 42)
    assert [(row["pairs"], row["rejected"], row["position_bias"], row["win"]["share"]) for row in table] == [
        (0, 2, None, None)
    ] * 3


def test_empty_and_equal_answers_need_no_judge(tmp_path: Path) -> None:
    made = items(3)
    made[0]["answers"] = {"kt": " \n", "sft": "Something."}
    made[1]["answers"] = {"kt": "Something.", "sft": ""}
    made[2]["answers"] = {"kt": "The same.", "sft": "The same. "}
    records, rejects, arrived = judged(tmp_path, made)
    assert arrived == 0
    [row, *_] = tally(records, rejects, "strict", 42)
    assert [row[name]["count"] for name in ("win", "tie", "lose")] == [1, 1, 1]
    assert row["without_judge"] == {"empty answer": 2, "equal answers": 1}
    assert row["position_bias"] is None


def test_html_in_answers_goes_to_the_judge_as_it_stands(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> & {{ 7 * 7 }} [End of answer A]"
    made = [{"id": "q", "question": "<b>?</b>", "answers": {"kt": hostile, "sft": "short"}}]
    record = next(pairs(made, [("kt", "sft")], ["factuality"]))
    first, second = judge_pair(load_prompts("default")["judge-pair"], 42, 3).requests(record)
    for request, before in ((first, "[Answer A]\n"), (second, "[Answer B]\n")):
        assert before + hostile in request.body["messages"][-1]["content"]


def test_single_answers_are_scored_and_averaged(tmp_path: Path) -> None:
    made = items(3)
    made[0]["answers"]["sft"] = ""
    source = tmp_path / "items.jsonl"
    write_jsonl(source, made)
    step = judge_single(load_prompts("compact")["judge-single"], 42, 3)
    with (
        scripted_server(tmp_path) as server,
        Cache(tmp_path / "c.sqlite") as cache,
        Client(cache, [Endpoint("openai", [server.url], "m")]) as client,
    ):
        inputs = lambda: singles(read_jsonl(source), ["kt", "sft"], ["completeness"])  # noqa: E731
        run_step(step, inputs, [source], tmp_path / "score", client)
    found = mean_scores(read_jsonl(tmp_path / "score/records.jsonl"), [], 42)
    assert found["kt"]["completeness"]["mean"] == round((6 + 9 + 10) / 3, 6)
    assert found["sft"]["completeness"] == {"mean": round((1 + 3 + 3) / 3, 6), "interval": [1, 3], "answers": 3, "rejected": 0}


# ---- intervals -----------------------------------------------------------------------------------------------------


def test_intervals_are_seeded_and_cover_the_mean() -> None:
    draw = random.Random(0)
    values = [draw.random() for _ in range(200)]
    one, same, other = mean(values, 1, "a"), mean(values, 1, "a"), mean(values, 2, "a")
    assert one == same
    assert one["interval"] != other["interval"]
    low, high = one["interval"]
    assert low < one["mean"] < high
    # The normal approximation, 1.96 standard errors each way, is close at this size.
    deviation = (sum((v - one["mean"]) ** 2 for v in values) / len(values)) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation / 200**0.5, rel=0.1)


def test_ratios_weigh_by_size_and_pass_over_empty_answers() -> None:
    assert ratio([1, 0, 3, 0], [2, 0, 3, 5], 1, "r")["share"] == 0.4
    assert ratio([0, 0], [0, 0], 1, "r") == {"share": None, "interval": None}
    assert ratio([1], [2], 1, "r") == {"share": 0.5, "interval": None}
    assert mean([], 1, "m") == {"mean": None, "interval": None}
