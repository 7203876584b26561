"""Costs by hand: every figure of a small build with known tokens, and the price table that a user edits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_server import scripted_server
from test_build import at, questions
from test_build import kt as build

from kt.cache import Cache
from kt.cost import cache_costs, report, run_costs, total
from kt.errors import InputError

ITEMS = 6
CALLS = 5 * ITEMS  # extract, rewrite-question, rewrite-answer, rephrase, revise: 20 + 10 tokens each, says the server


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build and a second one of the same items, on one cache; its tokens are known."""
    folder = tmp_path_factory.mktemp("cost")
    with scripted_server(folder) as server:
        for out in ("a", "b"):
            done = build(*at(server), "--data", questions(folder, ITEMS), "--cache", folder / "c", "--out", folder / out)
            assert done.returncode == 0, done.stderr
    return folder


def kt(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "cost", *map(str, args)], capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_run_by_hand(built: Path) -> None:
    rows = run_costs(built / "a")
    assert [row["step"] for row in rows] == ["extract", "rephrase", "revise", "rewrite-answer", "rewrite-question"]
    for row in rows:
        assert (row["answers"], row["prompt_tokens"], row["completion_tokens"]) == (ITEMS, 20 * ITEMS, 10 * ITEMS)
        assert (row["paid"], row["at_price"]) == (0, 0)
        assert row["at_reference"] == pytest.approx(ITEMS * (20 * 0.5 + 10 * 1.5) / 1e6)
    sums = total(rows)
    assert (sums["answers"], sums["seconds"]) == (CALLS, None)
    assert sums["at_reference"] == pytest.approx(CALLS * 25 / 1e6)


def test_the_cache_by_hand_and_what_the_second_run_took_from_it(built: Path) -> None:
    with Cache(built / "c", read_only=True) as cache:
        told = report([built / "a", built / "b"], cache, "gpt-4o")
        rows = [row for row in cache_costs(cache) if row["answers"] == ITEMS]
        stored = cache.db.execute("SELECT count(*) FROM completions WHERE status = 'ok'").fetchone()[0]
    assert len(rows) == 5
    assert all(row["seconds"] > 0 and row["unusable"] == 0 for row in rows)
    assert told["saved"] == {"answers": 2 * CALLS, "from_cache": 2 * CALLS - stored}
    assert CALLS <= stored < 2 * CALLS
    assert told["runs"][0]["total"]["at_reference"] == pytest.approx(CALLS * (20 * 2.5 + 10 * 10) / 1e6)


def test_the_users_price_table_counts(built: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/prices.yaml").write_text("m: {input: 1.0, output: 2.0}\ngpt-3.5-turbo: {input: 0, output: 0}\n")
    told = json.loads(kt(built / "a", "--cache", built / "c", "--json", cwd=tmp_path).stdout)
    sums = told["runs"][0]["total"]
    assert sums["at_price"] == pytest.approx(CALLS * (20 * 1 + 10 * 2) / 1e6)
    assert (sums["paid"], sums["at_reference"]) == (0, 0)


def test_log_probabilities_have_no_price_at_a_chat_api(tmp_path: Path) -> None:
    from test_cache import row

    with Cache(tmp_path / "c") as cache:
        scores: Any = row("s")._replace(kind="loglikelihood", prompt="score")
        cache.put([row("a"), row("b", "", status="empty"), scores])
        rows = {r["step"]: r for r in cache_costs(cache)}
    assert rows["score"]["at_reference"] is None
    chats = next(r for step, r in rows.items() if step != "score")
    assert (chats["answers"], chats["unusable"]) == (2, 1)


def test_what_it_says(built: Path, tmp_path: Path) -> None:
    said = kt(built / "a", "--cache", built / "c", "--at", "gpt-4")
    assert "rewrite-question" in said.stdout
    assert said.stdout.splitlines()[-1] == (
        "a rerun takes 30 answers from the cache and sends none; with gpt-4 this would have cost $0.04"
    )
    assert kt(built / "a", "--cache", tmp_path / "none").returncode == 0
    assert kt("--cache", tmp_path / "none").returncode == 1
    assert "no price in prices.yaml" in kt(built / "a", "--at", "nobody").stderr
    assert "not a run" in kt(tmp_path).stderr
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        run_costs(tmp_path)


def test_one_run_given_twice_counts_once_and_no_cache_is_no_saving(built: Path, tmp_path: Path) -> None:
    done = kt(built / "a", f"{built}/b/../a", "--cache", tmp_path / "none.sqlite")
    assert f"made of {CALLS:,} answers" in done.stdout
    assert "a rerun takes" not in done.stdout


def test_a_manifest_of_another_shape_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"step": "extract", "models": [{"model": "m"}]}')
    done = kt(tmp_path)
    assert done.returncode == 1
    assert "the manifest of step . lacks completion_tokens, completions, cost" in done.stderr
