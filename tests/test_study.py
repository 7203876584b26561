"""A study in a generated world: counted by the oracle, repeatable byte for byte, and on loopback alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kt.demo.attributes import ATTRIBUTES, say, wrong_value
from kt.demo.counting import as_markdown, as_rows, count_answer, difference_rows, mention_rows, summary
from kt.demo.world import make_world
from kt.train_config import read_experiment

ROOT = Path(__file__).parents[1]
WORLD = make_world(3, 4)
NAME, TOWN = next(iter(WORLD.entities.items()))


def fact(attribute: str, phrasing: int = 0) -> str:
    return say(attribute, NAME if phrasing == 0 else "It", TOWN.values[attribute], phrasing)


def test_an_answer_is_counted_with_the_share_of_the_gold_answers_facts() -> None:
    wrong = say("winter", "It", wrong_value(ATTRIBUTES["winter"], TOWN.values["winter"]))
    gold = " ".join(fact(attribute) for attribute in ("land", "year", "winter", "fair"))
    other, town = list(WORLD.entities.items())[1]
    answer = " ".join([fact("land", 1), wrong, fact("dish"), fact("fair", 2), fact("fair"), "It is nice."])
    answer += f" {say('year', other, town.values['year'])}"
    row = count_answer(WORLD, {"id": NAME, "gold": gold, "answers": {"m": answer}}, "m")
    counts = {"facts": 5, "correct": 4, "incorrect": 1, "elsewhere": 1, "repeated": 1, "other": 1, "gold": 4, "gold_stated": 2}
    assert {key: row[key] for key in counts} == counts
    assert row["correct_share"] == 0.8
    assert [sum(counts[side] for counts in row["mentions"].values()) for side in (0, 1)] == [4, 1]
    assert row["mentions"][str(TOWN.mentions["winter"])][1] == 1


def row(town: str, name: str, correct: int, incorrect: int, stated: int = 0) -> dict[str, Any]:
    counts = {"facts": correct + incorrect, "correct": correct, "incorrect": incorrect, "gold": 4, "gold_stated": stated}
    return {"item": town, "name": name, "elsewhere": 0, "other": 1, "repeated": 0, "mentions": {"1": [correct, 0]}, **counts}


def test_figures_are_means_over_seeds_with_their_spread_and_differences_paired_over_towns() -> None:
    counted = {
        1: [row("A", "sft", 2, 2), row("B", "sft", 2, 0), row("A", "kt", 4, 0, 4), row("B", "kt", 4, 2)],
        2: [row("A", "sft", 4, 0), row("B", "sft", 4, 0), row("A", "kt", 6, 0), row("B", "kt", 6, 0, 4)],
    }
    found = summary(["sft", "kt"], counted, 0)
    sft, kt = found["methods"]["sft"], found["methods"]["kt"]
    assert sft["correct"] == {"mean": 3.0, "spread": 1.414214, "by_seed": [2.0, 4.0]}
    assert sft["correct_share"]["by_seed"] == [round(4 / 6, 6), 1.0]
    assert kt["completeness"]["by_seed"] == [0.5, 0.5]
    assert kt["against sft"]["correct"]["mean"] == 2.0
    assert kt["against sft"]["correct"]["interval"] == [2.0, 2.0]  # the same in every town
    assert kt["against sft"]["correct_share"]["share"] == round(20 / 22 - 12 / 14, 6)
    assert "against sft" not in sft
    assert kt["by mentions"] == {"1": {"correct": 5.0, "incorrect": 0.0}}
    assert as_rows(found)[1][:4] == ["sft", "3.00 ± 1.41", "0.50 ± 0.71", "83.3 ± 23.6"]
    assert as_markdown(found).startswith("| method | # correct | # incorrect | % correct |")


def test_the_published_tables_are_those_of_the_published_numbers() -> None:
    text = (ROOT / "docs" / "controlled-study.md").read_text()
    results = json.loads((ROOT / "docs" / "controlled-study.json").read_bytes())
    config = read_experiment(ROOT / "configs" / "demo-study.yaml")
    assert config.world is not None
    assert (results["world"], results["seeds"]) == (config.world.seed, config.seeds)
    assert list(results["methods"]) == config.methods
    for cells in [*as_rows(results)[1:], *mention_rows(results)[1:]]:
        assert f"| {' | '.join(cells)} |" in text
    for cells in difference_rows(results)[1:]:
        assert f"| {' | '.join(cells[:5])} |" in text


def test_towns_must_suffice(tmp_path: Path) -> None:
    from kt.errors import ConfigError

    text = "out: o\nmodel: m\ndata: [d]\nworld: {seed: 1, towns: 9, train: 6, test: 4}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="train and test are 10 towns of 9"):
        read_experiment(tmp_path / "c.yaml")


# ---- the whole, with the shipped models --------------------------------------------------------------------------------


def run(config: Path) -> dict[str, Any]:
    """Run the study where no other machine can be reached."""
    command = [sys.executable, "-m", "kt", "run", str(config), "--json", "--quiet"]
    if os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/demo.yaml with six towns to learn from and four to answer about."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("study")
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    values |= {"out": str(folder / "run"), "seeds": [1, 2], "methods": ["sft", "knowtuning"]}
    values["world"] |= {"train": 6, "test": 4}
    for section in ("sft", "ka", "kc"):
        values[section] |= {"num_train_epochs": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"


def data_of(out: Path) -> dict[str, bytes]:
    names = [*out.glob("seed-*/data/sets/*"), *out.glob("seed-*/generate/*/records.jsonl"), *out.glob("results.*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in names}


@pytest.mark.xdist_group("llama")
def test_a_study_runs_on_loopback_alone_and_again_from_the_cache_to_the_same_bytes(study: Path) -> None:
    out = study.parent / "run"
    first = run(study)
    assert first["results"]["towns"] == 4
    assert not any(stage["skipped"] for stage in first["stages"])
    for seed in (1, 2):
        facts = json.loads((out / f"seed-{seed}/facts/results.json").read_bytes())["methods"]
        for name in ("sft", "knowtuning"):
            by_seed = first["results"]["methods"][name]["correct"]["by_seed"]
            assert facts[name]["facts"]["correct"] == by_seed[seed - 1] * 4
    page = (out / "report.html").read_text()
    assert "Facts by the oracle, all seeds" in page
    assert set(first["seconds"]) >= {"sft", "data", "ka", "kc", "generate", "counting", "page"}
    before = data_of(out)
    assert len(before) > 20
    for folder in out.glob("seed-*/data"):
        shutil.rmtree(folder)
    again = run(study)
    assert {stage["name"] for stage in again["stages"] if not stage["skipped"]} == {"data"}
    assert data_of(out) == before
    assert not list(out.glob("seed-*/data/engine.log")), "the second time no engine starts"
