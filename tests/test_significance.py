"""Paired differences by hand, and two evaluations compared through the command line, with what must not be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_server import scripted_server
from test_evaluate import at, study
from test_evaluate import kt as evaluate

from kt.records import read_jsonl
from kt.significance import difference, paired_p

pytest.importorskip("scipy")


def compare(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "compare", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows_of(*args: object) -> dict[str, Any]:
    done = compare(*args, "--json")
    assert done.returncode == 0, done.stderr
    return {row["number"]: row for row in json.loads(done.stdout)["rows"]}


def test_p_is_the_share_of_swaps_that_differ_as_much() -> None:
    """Five items, each one better by 1: of 32 ways to swap, two give a mean gap of 1 or -1."""
    assert paired_p([2, 3, 4, 5, 6], [1, 2, 3, 4, 5], 42, "x") == 2 / 32
    # Gaps 3, -1, 1: sums of the 8 sign patterns are 5, 3, 3, 1 and their negatives; 3 or more either way: 6 of 8.
    assert paired_p([3, 0, 1], [0, 1, 0], 42, "x") == 6 / 8
    assert paired_p([1, 2], [1, 2], 42, "x") == 1
    many = [float(i % 7) for i in range(60)], [float(i % 5) for i in range(60)]
    assert paired_p(*many, 42, "x") == paired_p(*many, 42, "x"), "drawn, but by the seed"
    assert paired_p([x + 3 for x in many[0]], many[1], 42, "x") == pytest.approx(2 / 10000)


def test_a_difference_is_that_of_the_means() -> None:
    found = difference(("kt", "sft", "words"), [4, 6, 8], [1, 2, 3], 2, 42)
    assert (found.items, found.left_out, found.mean, found.against_mean, found.difference) == (3, 2, 6, 2, 4)
    assert found.interval is not None
    assert 3 <= found.interval[0] <= found.difference <= found.interval[1] <= 5  # type: ignore[operator]
    assert found.p == 2 / 8
    nothing = difference(("kt", "sft", "words"), [], [], 3, 42)
    assert (nothing.items, nothing.left_out, nothing.p, nothing.mean) == (0, 3, None, None)


PARTS = ["--metrics", "meteor-no-wordnet,score,facts"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations of the same methods: whole, and of the first five items; and one with another evidence."""
    folder = tmp_path_factory.mktemp("runs")
    with scripted_server(folder) as server:
        common = [*study(folder), *PARTS, *at(server), "--cache", folder / "c.sqlite"]
        for name, more in {"whole": [], "five": ["--limit", 5], "none": ["--evidence", "none"]}.items():
            done = evaluate(*common, "--out", folder / name / "evaluate", *more)
            assert done.returncode == 0, done.stderr
    return folder


def test_two_methods_of_one_evaluation(runs: Path) -> None:
    found = rows_of(runs / "whole", runs / "whole/evaluate", "--method", "kt=sft")
    assert list(found) == [
        "words",
        "meteor-no-wordnet",
        "facts correct",
        "facts incorrect",
        "facts correct_share",
        *(f"score {criterion}" for criterion in ("completeness", "factuality", "logicality")),
    ]
    # kt has 2 correct facts and no wrong one in all 8 items; sft one wrong one in 7 and an empty answer in one.
    assert [found["facts correct"][key] for key in ("mean", "against_mean", "difference", "interval")] == [2, 0, 2, [2, 2]]
    assert found["facts correct"]["p"] == pytest.approx(2 / 2**8, abs=1e-6)
    assert (found["facts incorrect"]["difference"], found["facts incorrect"]["p"]) == (-7 / 8, 2 / 2**7)
    assert (found["facts correct_share"]["items"], found["facts correct_share"]["left_out"]) == (7, 1)
    assert found["words"]["difference"] == 8 - 7 * 4 / 8
    ps = sorted((row["p"], row["p_adjusted"]) for row in found.values())
    least = min(1, *(p * len(ps) / rank for rank, (p, _) in enumerate(ps, 1)))
    assert ps[0][1] == pytest.approx(least, abs=1e-6), "Benjamini-Hochberg: the least of p times rows over rank"
    own = [row for row in read_jsonl(runs / "whole/evaluate/metrics/records.jsonl") if row["name"] == "kt"]
    assert found["meteor-no-wordnet"]["mean"] == pytest.approx(sum(r["meteor-no-wordnet"] for r in own) / 8, abs=1e-6)


def test_methods_of_one_name_over_the_items_that_both_have(runs: Path) -> None:
    refused = compare(runs / "whole", runs / "five")
    assert refused.returncode == 1
    assert "five/evaluate lacks 3 (q5, q6, q7)" in refused.stderr
    done = compare(runs / "whole", runs / "five", "--common", "--json")
    found = json.loads(done.stdout)
    assert (found["items"], found["not_shared"]) == (5, {"one": 3, "other": 0})
    assert {(row["method"], row["against"]) for row in found["rows"]} == {("kt", "kt"), ("sft", "sft")}
    assert all((row["difference"], row["p"]) == (0, 1) for row in found["rows"]), "the same answers"
    assert compare(runs / "whole", runs / "five", "--common", "--json").stdout == done.stdout
    printed = compare(runs / "whole", runs / "five", "--common").stdout
    assert "5 items (3 not in both left out); paired permutation test" in printed
    assert "| kt     |      kt |               words |     5 | 8.000 |" in printed


def test_what_cannot_be_compared_is_said(runs: Path, tmp_path: Path) -> None:
    cases = [
        ([runs / "whole", runs / "none"], "facts correct: the two evaluations differ in evidence"),
        ([runs / "whole", runs / "whole"], "the same evaluation twice; say which of its methods"),
        ([runs / "whole", runs / "five", "--method", "kt=x"], "no answers of x; it has those of kt, sft"),
        ([runs, runs / "five"], "holds several evaluations"),
        ([tmp_path, runs / "five"], "no finished evaluation in it"),
    ]
    for args, says in cases:
        done = compare(*args)
        assert (done.returncode, says in done.stderr) == (1, True), (args, done.stderr)
    assert compare(runs / "whole", runs / "five", "--method", "=x").returncode == 2
