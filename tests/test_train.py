"""`kt train` and `kt run` as a user runs them: resumed, repeated, on several processes, with bad input."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import hear_interrupts
from safetensors.torch import load_file

from kt.demo.world import make_world, question_items
from kt.records import read_jsonl, write_json, write_jsonl
from kt.train import _outputs, _save, inputs, last_checkpoint
from kt.train_config import SFT, read_experiment

WITHOUT_BITSANDBYTES = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
TRAINER = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2}


def kt(*args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line; a traceback is a bug whatever happens."""
    command = [sys.executable, "-m", "kt", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "Traceback" not in done.stderr, done.stderr
    if check:
        assert done.returncode == 0, done.stderr
    return done


def make_config(folder: Path, base: Path, out: str = "run", **changes: Any) -> Path:
    """Write a config of a tiny experiment over a world's questions, with its sets as `kt build-data` leaves them."""
    items = question_items(make_world(3, 16))
    questions = folder / "questions.json"
    write_json(questions, [{"id": i["id"], "instruction": i["question"], "output": i["answer"]} for i in items])
    config = {
        "out": str(folder / out),
        "model": str(base),
        "data": [str(questions)],
        "hold_out": 2,
        "trainer": TRAINER,
        "sft": {"num_train_epochs": 2},
        "kc": {"num_train_epochs": 2, "learning_rate": 1e-2},
        **changes,
    }
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(config))
    rows = [{"id": i["id"], "prompt": i["question"], "completion": i["answer"]} for i in items]
    write_jsonl(folder / out / "data" / "sets" / "ka.jsonl", rows)
    write_jsonl(folder / out / "data" / "sets" / "kc.jsonl", pairs_of(items))
    return path


def pairs_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a pair of each aspect of every item, by hand."""
    made = []
    for item in items:
        facts = [f"{part}." for part in item["answer"].rstrip(".").split(". ")]
        worse = {"completeness": facts[:1], "factuality": [f.replace("e", "a") for f in facts], "logicality": facts[::-1]}
        for aspect, rejected in worse.items():
            pair = {"id": f"{item['id']}/{aspect}", "item": item["id"], "aspect": aspect, "prompt": item["question"]}
            made.append({**pair, "chosen": item["answer"], "rejected": " ".join(rejected)})
    return made


def log_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "curves.jsonl"))


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its three stages trained."""
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(folder, tiny_llama)
    told = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**told, "ka": {"report_to": ["tensorboard"]}}))
    for stage in ("sft", "ka", "kc"):
        kt("train", config, "--stage", stage, "--quiet")
    return folder


def test_a_training_learns_and_leaves_adapter_curves_and_manifest(trained: Path) -> None:
    for stage in ("sft", "ka", "kc"):
        losses = [line["loss"] for line in log_of(trained / "run" / stage) if "loss" in line]
        assert losses[-1] < losses[0]
        assert (trained / "run" / stage / "curves.svg").read_text().startswith("<?xml")
        assert not list((trained / "run" / stage).rglob("*.bin"))
        assert not (trained / "run" / stage / "checkpoints").exists()
    assert list((trained / "run" / "ka" / "tensorboard").glob("events.*"))
    manifest = json.loads((trained / "run" / "sft" / "manifest.json").read_bytes())
    assert manifest["counts"] == {"rows": 14, "held_out": 2, "too_long": 0}
    assert manifest["result"]["held_out_loss"] == min(x["eval_loss"] for x in log_of(trained / "run/sft") if "eval_loss" in x)


def test_kc_begins_at_ln_2_and_says_the_accuracy_of_each_aspect(trained: Path, tmp_path: Path, tiny_llama: Path) -> None:
    log = log_of(trained / "run" / "kc")
    assert {"accuracy/completeness", "accuracy/factuality", "accuracy/logicality", "margin"} <= set(log[-2])
    config = make_config(tmp_path, tiny_llama, kc={"gamma": 0.0, "num_train_epochs": 1, "learning_rate": 1e-2})
    shutil.copytree(trained / "run" / "ka", tmp_path / "run" / "ka")
    kt("train", config, "--stage", "kc", "--quiet")
    assert log_of(tmp_path / "run" / "kc")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_finished_training_is_skipped_and_one_that_was_changed_is_not(trained: Path) -> None:
    config = trained / "run.yaml"
    assert json.loads(kt("train", config, "--stage", "sft", "--json", "--quiet").stdout)["skipped"]
    adapter = trained / "run" / "sft" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    told = yaml.safe_load(config.read_text())
    wrong = trained / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**told, "trainer": {**TRAINER, "save_strategy": "never"}}))
    assert kt("train", wrong, "--stage", "sft", check=False).returncode == 1
    assert json.loads(kt("train", config, "--stage", "sft", "--json", "--quiet").stdout)["skipped"], "a slip costs nothing"
    adapter.write_bytes(before[:-1])
    assert not json.loads(kt("train", config, "--stage", "sft", "--json", "--quiet").stdout)["skipped"]
    assert adapter.read_bytes() == before, "two trainings with one seed give the same bytes"


def test_the_number_of_processes_is_part_of_what_a_training_depends_on(trained: Path) -> None:
    config = read_experiment(trained / "run.yaml")
    said = inputs(config, SFT)
    assert inputs(config.model_copy(update={"processes": 4}), SFT) != said
    assert inputs(config.model_copy(update={"torchrun": {"nnodes": 2, "node-rank": 0}}), SFT) != said
    assert inputs(config.model_copy(update={"torchrun": {"nnodes": 1, "node-rank": 0}}), SFT) == said


def test_weights_in_several_files_are_all_looked_at_and_an_earlier_adapter_goes(tmp_path: Path) -> None:
    class Sharded:
        accelerator = SimpleNamespace(wait_for_everyone=lambda: None)

        def is_world_process_zero(self) -> bool:
            return True

        def save_model(self, folder: str) -> None:
            Path(folder).mkdir()
            for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
                (Path(folder) / name).write_text("{}")

    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("old")
    _save(Sharded(), tmp_path)
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [path.name for path in _outputs(tmp_path)] == names == sorted(path.name for path in tmp_path.iterdir())


def test_a_killed_training_goes_on_to_the_same_losses_and_bytes(trained: Path, tmp_path: Path, tiny_llama: Path) -> None:
    config = make_config(tmp_path, tiny_llama, "again")
    command = [sys.executable, "-m", "kt", "train", str(config), "--stage", "sft", "--quiet"]
    running = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "again" / "sft" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints / "checkpoint-2" / "trainer_state.json").exists():
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not (tmp_path / "again" / "sft" / "manifest.json").exists()
    shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "checkpoint-9")
    (checkpoints / "checkpoint-9" / "trainer_state.json").write_text('{"half')  # killed while it was written
    said = kt("train", config, "--stage", "sft").stderr
    assert "going on from step" in said
    assert log_of(tmp_path / "again" / "sft") == log_of(trained / "run" / "sft")
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / "sft" / name).read_bytes() == (trained / "run" / "sft" / name).read_bytes()


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for number, state in ((2, "{}"), (10, "{}"), (12, "")):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("stage", ["sft", "kc"])
def test_two_processes_give_the_losses_of_one(trained: Path, tmp_path: Path, tiny_llama: Path, stage: str) -> None:
    """One process adds up two micro-batches a step, or two processes do one each."""
    found = {}
    for processes in (1, 2):
        # No held-out rows: the first process's micro-batches must be those of the two.
        trainer = {**TRAINER, "gradient_accumulation_steps": 2 // processes, "save_steps": 100}
        config = make_config(tmp_path, tiny_llama, f"on-{processes}", trainer=trainer, processes=processes, hold_out=0)
        shutil.copytree(trained / "run" / "ka", tmp_path / f"on-{processes}" / "ka")
        kt("train", config, "--stage", stage, "--quiet")
        folder = tmp_path / f"on-{processes}" / stage
        found[processes] = (
            [line["loss"] for line in log_of(folder) if "loss" in line],
            load_file(folder / "adapter_model.safetensors"),
        )
    assert len(found[1][0]) >= 4
    assert found[2][0] == pytest.approx(found[1][0], abs=1e-6)
    assert all((found[1][1][name] - value).abs().max() < 1e-5 for name, value in found[2][1].items())


def test_several_processes_are_interrupted_without_a_traceback(tmp_path: Path, tiny_llama: Path) -> None:
    sft = {"num_train_epochs": 10000, "save_steps": 1, "save_total_limit": 1}
    config = make_config(tmp_path, tiny_llama, processes=2, hold_out=0, sft=sft)
    command = [sys.executable, "-m", "kt", "train", str(config), "--stage", "sft", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts)
    deadline = time.monotonic() + 120
    try:
        while not list((tmp_path / "run" / "sft" / "checkpoints").glob("checkpoint-*")):
            assert time.monotonic() < deadline, "no checkpoint"
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=120)[1]
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Traceback" not in said, said


def test_a_base_in_four_bits_is_trained_through_its_adapter(tmp_path: Path, tiny_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = make_config(tmp_path, tiny_llama, quantization="nf4", dtype="bfloat16")
    for stage in ("ka", "kc"):
        kt("train", config, "--stage", stage, "--quiet")
        losses = [line["loss"] for line in log_of(tmp_path / "run" / stage) if "loss" in line]
        assert losses[-1] < losses[0]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("sft", {"max_length": 20}, "14 rows have more than 20 tokens|16 rows have more than 20 tokens"),
        ("sft", {"hold_out": 16}, "hold_out: 16 of 16 items leaves none to train on"),
        ("sft", {"trainer": {"learning_rate": "abc"}}, "trainer.learning_rate"),
        ("sft", {"sft": {"num_train_epochs": 0}}, "sft.num_train_epochs"),
        ("sft", {"lora": {"rank": 8}}, "lora: .*'rank'.*its keys are those of PEFT's LoraConfig"),
        ("sft", {"lora": {"target_modules": ["nothing"]}}, "lora: .*nothing"),
        ("sft", {"trainer": {"learning_rat": 1}}, "learning_rat.*keys are those of SFTConfig"),
        (
            "sft",
            {"trainer": {**TRAINER, "learning_rate": 1e30, "max_grad_norm": 0}},
            "the loss is nan at step .*lower learning_rate",
        ),
        ("kc", {}, "ka: no finished training; train it first: kt train --stage ka"),
        ("sft", {"model": "/nowhere"}, "no model at /nowhere"),
        ("sft", {"data": ["/nowhere.json"]}, "/nowhere.json"),
        ("sft", {"methods": ["kt"]}, "methods: unknown: kt; known methods: sft, rlaif, facttune, knowtuning, -KA"),
        pytest.param("sft", {"quantization": "nf4"}, "needs bitsandbytes: pip install", marks=WITHOUT_BITSANDBYTES),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    tmp_path: Path, tiny_llama: Path, stage: str, changes: dict[str, Any], says: str
) -> None:
    config = make_config(tmp_path, tiny_llama, **changes)
    done = kt("train", config, "--stage", stage, check=False)
    assert done.returncode == 1
    assert re.search(says, done.stderr), done.stderr


def test_pairs_without_a_choice_or_words_are_named(trained: Path, tmp_path: Path, tiny_llama: Path) -> None:
    config = make_config(tmp_path, tiny_llama)
    shutil.copytree(trained / "run" / "ka", tmp_path / "run" / "ka")
    path = tmp_path / "run" / "data" / "sets" / "kc.jsonl"
    good = list(read_jsonl(path))
    for change, says in [({"rejected": good[4]["chosen"]}, "chosen and rejected are equal"), ({"chosen": " "}, "is empty")]:
        write_jsonl(path, [*good[:4], {**good[4], **change}, *good[5:]])
        done = kt("train", config, "--stage", "kc", check=False)
        assert done.returncode == 1
        assert good[4]["id"] in done.stderr
        assert says in done.stderr


def test_an_adapter_for_another_base_is_refused(trained: Path, tmp_path: Path, tiny_llama: Path) -> None:
    import tiny_models

    other = tiny_models.make_llama(tmp_path / "other", seed=1)
    config = make_config(tmp_path, other)
    shutil.copytree(trained / "run" / "ka", tmp_path / "run" / "ka")
    done = kt("train", config, "--stage", "kc", check=False)
    assert done.returncode == 1
    assert "was trained on another base" in done.stderr


SCARCE = """
import json, resource, sys
import kt.train_stages, trl, peft, datasets, torch
from kt.train import train
from kt.train_config import SFT, read_experiment
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
try:
    train(read_experiment(sys.argv[1]), SFT, quiet=True)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to say how much memory there is")
def test_memory_that_runs_out_is_said_with_what_to_do(tmp_path: Path, tiny_llama: Path) -> None:
    items = [{"id": str(n), "instruction": f"What of {n}?", "output": f"The {n} is here. " * 600} for n in range(40)]
    write_json(tmp_path / "long.json", items)
    trainer = {**TRAINER, "per_device_train_batch_size": 32}
    changes = {"data": [str(tmp_path / "long.json")], "trainer": trainer, "max_length": 8192}
    config = make_config(tmp_path, tiny_llama, **changes)
    done = subprocess.run([sys.executable, "-c", SCARCE, str(config)], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("TrainingError sft: memory ran out: lower per_device_train_batch_size"), done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a small tmpfs needs root")
def test_a_full_disk_leaves_the_last_checkpoint(trained: Path, tmp_path: Path, tiny_llama: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode()}")
    try:
        config = make_config(tmp_path, tiny_llama, "disk", trainer={**TRAINER, "save_total_limit": None})
        done = kt("train", config, "--stage", "sft", check=False)
        assert done.returncode == 1
        assert "the disk is full; free some space and run again" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert "going on from step" in kt("train", config, "--stage", "sft").stderr
        assert log_of(disk / "sft") == log_of(trained / "run" / "sft")
    finally:
        subprocess.run(["umount", str(disk)])
