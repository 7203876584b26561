"""A dry run of an evaluation says exactly what the run then sends, and leaves nothing behind."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripted_server import scripted_server
from test_evaluate import at, kt, study, tree
from test_report_judged import three_methods

pytest.importorskip("scipy")
pytest.importorskip("nltk")

JUDGED = ["--metrics", "judge,score,facts"]
PROMPTS = {
    "judge": "judge-pair",
    "judge-2": "judge-pair",
    "score": "judge-single",
    "split": "extract",
    "check": "check-fact",
}


def dry(*args: object) -> Any:
    """The plan as JSON; each step by its name, with what is to send."""
    done = kt(*args, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    plan["steps"] = {step.pop("name"): step for step in plan["steps"]}
    for step in plan["steps"].values():
        step["to_send"] = step["calls"] - step["cached"] - step["repeated"]
    return plan


def asked(cache: Path) -> Counter[tuple[str, str]]:
    """How many completions the cache holds, by prompt and model."""
    with sqlite3.connect(cache) as db:
        return Counter(db.execute("SELECT prompt, model FROM completions"))


def test_what_a_dry_run_says_is_what_the_run_sends(tmp_path: Path) -> None:
    """Two judges, and a third method that often answers as the first does: equal calls are sent once."""
    folder = tmp_path / "study"
    folder.mkdir()
    common = [*three_methods(folder), *JUDGED, "--all-pairs", "--cache", folder / "c.sqlite", "--out", folder / "a"]
    with scripted_server(tmp_path / "1") as one, scripted_server(tmp_path / "2", "--judge", "first") as two:
        common += [*at(one), "--second-judge", "n", "--second-base-url", two.url]
        before = tree(folder)
        plan = dry(*common)
        assert tree(folder) == before
        assert (one.events(), two.events()) == ([], [])
        assert plan["items"] == {"read": 9, "used": 8, "rejected": 1}
        assert {name: step["prompt"] for name, step in plan["steps"].items()} == PROMPTS
        assert plan["unsplit"] == {"answers": 19, "sentences": 31}  # 24 answers, five of them empty
        assert plan["steps"]["check"]["calls"] == 0
        assert plan["steps"]["judge"]["repeated"] > 0
        assert plan["first_request"]["messages"][-1]["content"].startswith("compare completeness")
        assert kt(*common).returncode == 0
        sent = asked(folder / "c.sqlite")
        for name in ("judge", "score", "split"):
            assert plan["steps"][name]["to_send"] == sent[PROMPTS[name], "m"] > 0
        assert plan["steps"]["judge-2"]["to_send"] == sent["judge-pair", "n"] > 0
        again = dry(*common)
        assert all(step["to_send"] == 0 and step["cached"] == step["calls"] > 0 for step in again["steps"].values())
        assert again["unsplit"]["answers"] == 0
        with sqlite3.connect(folder / "c.sqlite") as db:
            db.execute("DELETE FROM completions WHERE prompt = 'check-fact'")
        checks = dry(*common)["steps"]["check"]
        assert checks["to_send"] == sent["check-fact", "m"] > 0
        told = kt(*common, "--dry-run").stdout
    assert "8 of 9 items, the answers of 3 method(s)" in told
    assert f"to send: {checks['to_send']} calls, about " in told
    assert "no price for m in prices.yaml; no price for n in prices.yaml" in told


def test_half_a_pair_and_answers_that_are_of_no_use_are_counted_as_they_are(tmp_path: Path) -> None:
    common = [*study(tmp_path, 3), "--metrics", "judge", "--cache", tmp_path / "c.sqlite", "--out", tmp_path / "a"]
    with scripted_server(tmp_path, "--judge", "none") as server:
        assert kt(*common, *at(server), "--criterion", "factuality").returncode == 0
        pairs = dry(*common, *at(server), "--criterion", "factuality")["steps"]["judge"]
        assert (pairs["calls"], pairs["cached"]) == (12, 12)  # two pairs, rejected after three tries of two orders
        with sqlite3.connect(tmp_path / "c.sqlite") as db:
            db.execute("DELETE FROM completions WHERE key = (SELECT key FROM completions ORDER BY sample DESC LIMIT 1)")
        pairs = dry(*common, *at(server), "--criterion", "factuality")["steps"]["judge"]
        assert (pairs["calls"], pairs["cached"], pairs["to_send"]) == (6 + 2, 6 + 1, 1)  # the third try of one lacks an order


def test_a_dry_run_prices_the_judge_and_names_what_only_the_split_tells(tmp_path: Path) -> None:
    common = [*study(tmp_path, 4), "--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--judge", "gpt-4o-mini"]
    common += ["--cache", tmp_path / "c.sqlite", "--out", tmp_path / "a", "--prompts", "default"]
    plan = dry(*common, *JUDGED)
    assert plan["cost"] == pytest.approx(
        sum(s["prompt_tokens"] * 0.15e-6 + s["completion_tokens"] * 0.6e-6 for s in plan["steps"].values())
    )
    told = kt(*common, *JUDGED, "--dry-run").stdout
    assert "at the price of gpt-4o-mini about $" in told
    assert "and check-fact once for each fact of 7 answers (11 sentences): how many, only the split tells" in told
    none = kt(*common, "--metrics", "meteor-no-wordnet", "--dry-run").stdout
    assert "to send: 0 calls, about 0 tokens; these metrics ask nobody" in none
    assert "first request" not in none
    assert not (tmp_path / "a").exists()


def test_a_dry_run_says_what_is_wrong(tmp_path: Path) -> None:
    common = study(tmp_path, 2)
    (tmp_path / "empty.json").write_text(
        '[{"id": "q0", "question": "?", "answer": ""}, {"id": "q1", "question": "?", "answer": ""}]'
    )
    for options, words in (
        ([*common, "--answers", f"gone={tmp_path / 'gone'}"], "gone: cannot be read"),
        ([*common[:4], "--data", tmp_path / "empty.json"], "no usable item of 2"),
        ([*common, "--evidence", tmp_path / "none"], "no file or folder"),
        ([*common, "--out", tmp_path / "kt"], "holds other files (records.jsonl)"),
    ):
        done = kt("--metrics", "facts", "--judge", "m", "--out", tmp_path / "a", *options, "--dry-run")
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
