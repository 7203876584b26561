"""A whole experiment through `kt run`: done once, and of what is gone or changed only what depends on it again."""

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

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.xdist_group("llama")


def run(config: Path, **environment: str) -> dict[str, bool]:
    """Run the experiment; return its stages, and whether each was skipped. No process may reach another machine."""
    command = [sys.executable, "-m", "kt", "run", str(config), "--json", "--quiet"]
    if os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return {stage["name"]: stage["skipped"] for stage in json.loads(done.stdout)["stages"]}


def bytes_of(folder: Path) -> dict[str, bytes]:
    names = ("adapter_model.safetensors", "curves.jsonl", "records.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in names}


@pytest.fixture(scope="module")
def experiment(tiny_llama: Path, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/tiny.yaml with the tests' models, its folder and cache in a place of their own."""
    folder = tmp_path_factory.mktemp("experiment")
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    questions = str(ROOT / "examples" / "lighthouse.json")
    values |= {"out": str(folder / "run"), "model": str(tiny_llama), "data": [questions], "test": [questions]}
    values["build"] |= {"model": str(tiny_gguf), "cache": str(folder / "cache.sqlite")}
    values["generate"] |= {"max_tokens": 16}
    values["methods"] = ["sft", "knowtuning"]
    del values["evaluate"]  # tests/test_baselines.py has a whole experiment with its table
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_experiment_is_done_once_and_then_only_what_is_missing(experiment: Path) -> None:
    folder = experiment.parent / "run"
    stages = run(experiment)
    assert list(stages) == ["sft", "data", "ka", "kc", "generate sft", "generate knowtuning"]
    assert not any(stages.values())
    first = bytes_of(folder)
    assert all(run(experiment).values()), "the second time there is nothing to do"
    shutil.rmtree(folder / "ka")
    again = run(experiment)
    assert [name for name, skipped in again.items() if not skipped] == ["ka"], "the same adapter again: kc stays"
    shutil.rmtree(folder / "data")
    (folder / "generate" / "sft" / "records.jsonl").unlink()
    again = run(experiment)
    assert [name for name, skipped in again.items() if not skipped] == ["data", "generate sft"]
    assert bytes_of(folder) == first


def test_a_changed_setting_redoes_what_depends_on_it(experiment: Path) -> None:
    values = yaml.safe_load(experiment.read_text())
    changed = experiment.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({**values, "kc": {"gamma": 0.5}}))
    assert [name for name, skipped in run(changed).items() if not skipped] == ["kc", "generate knowtuning"]


def test_one_method_alone_trains_only_what_it_needs(experiment: Path) -> None:
    values = yaml.safe_load(experiment.read_text())
    alone = experiment.with_name("alone.yaml")
    alone.write_text(yaml.safe_dump({**values, "methods": ["-KC"], "out": str(experiment.parent / "alone")}))
    assert list(run(alone)) == ["sft", "data", "ka", "generate -KC"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test": ["missing.json"]}, "missing.json: no such file"),
        ({"generate": {"max_token": 5}}, "max_token: unknown key"),
        ({"build": {"model": "m", "delete_shar": 0.2}}, "delete_shar: unknown key"),
        ({"evaluate": {"metrics": ["rouge"]}}, "metrics.0"),
        ({"kc": {"betta": 1}}, "trainer or kc: unknown: betta"),
        ({"methods": ["sft", "rlaif"], "rlaif": {"sampels": 5}}, "trainer or rlaif: unknown: sampels"),
        ({"trainer": {"packing": False}}, "trainer or kc: unknown: packing; keys are those of TrainingArguments"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_before_the_first(
    experiment: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    from kt.errors import KtError
    from kt.experiment import run_experiment
    from kt.train_config import read_experiment

    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(experiment.read_text()), "out": str(tmp_path / "out"), **changed}))
    with pytest.raises(KtError, match=words):
        run_experiment(read_experiment(path), quiet=True)
    assert not (tmp_path / "out").exists()
    from kt.check import check

    assert any(words.split(":")[0] in problem for problem in check([str(path)], [], [], []).problems)
