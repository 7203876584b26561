"""An experiment's config as the settings of each stage; all are checked before the first stage runs for hours."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from kt.config import BuildConfig, EvaluateConfig, GenerateConfig, validate
from kt.errors import ConfigError, InputError
from kt.records import Record
from kt.train_config import (
    METHODS,
    SFT,
    Baseline,
    ExperimentConfig,
    Training,
    baseline_of,
    build_settings,
    data_of,
    evaluate_settings,
    folder_of,
    needed_trainings,
    needs_build,
    preferences_of,
    trainer_settings,
)


def check_settings(config: ExperimentConfig, *, files: bool = True) -> None:
    """Raise ConfigError or InputError for whatever would fail in a later stage: wrong keys and values, missing `files`.

    Trainer keys are checked where TRL is installed.
    """
    for path in (*config.data, *config.test) if files else ():
        if path != "-":
            existing(path)
    trainings = needed_trainings(config)
    if needs_build(config) or any(training.baseline for training in trainings):
        build_config(config)
    if config.test:
        for method in config.methods:
            generate_config(config, method)
    if config.evaluate is not None:
        evaluate_config(config)
    if importlib.util.find_spec("trl") is not None:
        for training in trainings:
            _check_trainer_keys(config, training)


def _check_trainer_keys(config: ExperimentConfig, training: Training) -> None:
    from transformers import TrainingArguments
    from trl import SFTConfig

    kind = TrainingArguments if training.stage == "kc" else SFTConfig
    known = {one.name for one in dataclasses.fields(kind) if one.init}
    if unknown := sorted(trainer_settings(config, training.stage, training.baseline).keys() - known):
        section = training.baseline or training.stage
        raise ConfigError(f"trainer or {section}: unknown: {', '.join(unknown)}; keys are those of {kind.__name__}")


def existing(path: str) -> str:
    """Return the path of a file that is there; InputError if it is not."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; the config's `data` and `test` name question-answer files")
    return path


def build_config(config: ExperimentConfig) -> BuildConfig:
    """Return the validated settings of the experiment's data; ConfigError names the key."""
    return validate(BuildConfig, build_settings(config.model_dump(mode="json")), "build")


def sample_config(config: ExperimentConfig, baseline: Baseline) -> GenerateConfig:
    """Return the settings of a baseline's samples: the training questions, answered by the `sft` model."""
    drawn = baseline_of(config, baseline).model_dump(include={"samples", "temperature", "top_p"})
    place = {"data": [str(data_of(config, SFT))], "out": str(preferences_of(config, baseline) / "samples"), "limit": None}
    return _answer_config(config, "sft", {**drawn, **place}, baseline)


def generate_config(config: ExperimentConfig, method: str) -> GenerateConfig:
    """Return the validated settings of a method's answers to the test questions; ConfigError names the key."""
    return _answer_config(config, method, {}, "generate")


def _answer_config(config: ExperimentConfig, method: str, own: Record, source: str) -> GenerateConfig:
    trained = folder_of(config, METHODS[method][-1].name)
    whole = not (trained / "adapter_config.json").exists()
    shared = {"data": config.test, "out": str(Path(config.out) / "generate"), "template": config.template, "seed": config.seed}
    cache = {"cache": config.build["cache"]} if "cache" in config.build else {}
    weights = {"model": str(trained) if whole else config.model, "adapters": {method: None if whole else str(trained)}}
    return validate(GenerateConfig, {**shared, **cache, **config.generate, **own, **weights}, source)


def evaluate_config(config: ExperimentConfig) -> EvaluateConfig:
    """Return the validated settings of the experiment's evaluation; ConfigError names the key."""
    return validate(EvaluateConfig, evaluate_settings(config), "evaluate")
