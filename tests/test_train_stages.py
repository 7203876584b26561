"""The trainers of the stages as they are prepared: what the reference's log-probabilities stand under, and what is off."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file, save_file
from scoring_models import save_adapter

from kt.config import find_shipped
from kt.errors import ConfigError
from kt.records import write_jsonl
from kt.train_config import METHODS, SFT, ExperimentConfig, read_experiment, trainer_settings
from kt.train_stages import kc_trainer, sft_trainer

KC = METHODS["knowtuning"][-1]
PAIRS = [
    {
        "id": f"q{n}/{aspect}",
        "aspect": aspect,
        "prompt": f"Who keeps {n}?",
        "chosen": f"Keeper {n}.",
        "rejected": f"No {aspect}",
    }
    for n in range(4)
    for aspect in KC.aspects
]


def experiment(out: Path, base: Path, **changes: Any) -> ExperimentConfig:
    """Write the pairs of an experiment and return its config."""
    write_jsonl(out / "data" / "sets" / "kc.jsonl", PAIRS)
    return ExperimentConfig(out=str(out), model=str(base), data=["none.json"], **{"dtype": "float32", **changes})


def references(config: ExperimentConfig) -> list[list[float]]:
    return [item.reference for item in kc_trainer(config, KC, True).trainer.items]


def files(out: Path) -> int:
    return len(list((out / "reference").iterdir()))


def test_dropout_of_the_adapter_is_off(tmp_path: Path, tiny_llama: Path) -> None:
    save_adapter(tmp_path / "ka", tiny_llama)
    settings = json.loads((tmp_path / "ka" / "adapter_config.json").read_text())
    (tmp_path / "ka" / "adapter_config.json").write_text(json.dumps({**settings, "lora_dropout": 0.5}))
    trainer = kc_trainer(experiment(tmp_path, tiny_llama, kc={"gamma": 0}), KC, True).trainer
    trainer.model.train()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(trainer.items))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eval_strategy": "steps"}, "eval_dataset"),
        ({"report_to": ["nothing"]}, "nothing"),
        ({"learning_rat": 1}, "learning_rat.*keys are those of TrainingArguments"),
        ({"deepspeed": "deepspeed/none.json"}, "deepspeed/none.json: no such file"),
    ],
)
def test_a_setting_that_the_trainer_refuses_is_a_config_error(
    tmp_path: Path, tiny_llama: Path, settings: dict[str, Any], says: str
) -> None:
    save_adapter(tmp_path / "ka", tiny_llama)
    with pytest.raises(ConfigError, match=says):
        kc_trainer(experiment(tmp_path, tiny_llama, kc=settings), KC, True)


def test_a_saving_that_does_not_match_evaluation_is_said_in_full(tmp_path: Path, tiny_llama: Path) -> None:
    config = experiment(tmp_path, tiny_llama, hold_out=1, trainer={"save_strategy": "no"})
    rows = [{"id": f"q{n}", "prompt": "Who?", "completion": "He."} for n in range(4)]
    write_jsonl(tmp_path / "sft" / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=r"Evaluation strategy: .*Save strategy: .*keys are those of SFTConfig"):
        sft_trainer(config, SFT, True)


def test_deepspeed_settings_that_kt_ships_are_found_from_any_folder(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_experiment("dolly-13b-hosts.yaml")
    path = find_shipped("configs", trainer_settings(config, "kc")["deepspeed"])
    assert json.loads(path.read_text())["zero_optimization"]["stage"] == 3


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_llama(tmp_path_factory.mktemp("other"), seed=1)


def test_a_wholly_trained_start_is_its_own_reference(tmp_path: Path, tiny_llama: Path, other: Path) -> None:
    config = experiment(tmp_path, tiny_llama, lora=None)
    shutil.copytree(other, tmp_path / "ka")
    first = references(config)
    weights = {name: tensor * 1.05 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, tmp_path / "ka" / "model.safetensors", {"format": "pt"})
    assert references(config) != first
    assert files(tmp_path) == 2


def test_the_base_is_the_reference_of_a_wholly_trained_start_too(tmp_path: Path, tiny_llama: Path, other: Path) -> None:
    config = experiment(tmp_path, tiny_llama, lora=None, kc={"reference": "base"})
    shutil.copytree(other, tmp_path / "ka")
    shutil.copytree(tiny_llama, tmp_path / "same" / "ka")
    same = experiment(tmp_path / "same", tiny_llama, lora=None)
    assert references(config) == references(same)


def test_the_reference_is_computed_anew_in_another_precision(tmp_path: Path, tiny_llama: Path) -> None:
    save_adapter(tmp_path / "ka", tiny_llama)
    found = [references(experiment(tmp_path, tiny_llama, kc=kc)) for kc in ({}, {"bf16": True}, {})]
    assert found[0] == found[2] != found[1]
    assert references(experiment(tmp_path, tiny_llama, dtype="auto")) in found
    stored = [json.loads(path.read_bytes()) for path in (tmp_path / "reference").iterdir()]
    assert sorted(stored) == sorted(found[:2])
