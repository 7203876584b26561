"""One experiment as one YAML: base model, data, what is trained how, which methods are compared."""
# ruff: noqa: RUF012 (pydantic copies defaults)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kt.config import BuildConfig, EvaluateConfig, JudgeConfig, Section, find_shipped, read_yaml, validate
from kt.errors import ConfigError
from kt.train_sections import FactTuneSection, KcSection, RlaifSection, TrainerSection, WorldSection

Stage = Literal["sft", "ka", "kc"]
Baseline = Literal["rlaif", "facttune"]
ASPECTS = ("completeness", "factuality", "logicality")
AT_ONCE = len(ASPECTS)
"""So many rejected answers share a row with their chosen one at most: more would make rows too long for a GPU."""

PAPER: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
"""The paper's optimiser (the defaults of its framework), for every stage."""

PAPER_STAGE: dict[str, dict[str, Any]] = {
    "sft": {"num_train_epochs": 3, "learning_rate": 1e-4, "per_device_train_batch_size": 32},
    "ka": {"num_train_epochs": 3, "learning_rate": 1e-4, "per_device_train_batch_size": 32},
    "kc": {"num_train_epochs": 1, "learning_rate": 1e-5, "per_device_train_batch_size": 16},
}


class ExperimentConfig(Section):
    """Everything that `kt run` needs, and of which `kt train` and `kt build-data` read their part.

    With `world`, it is a study: the same experiment for each of `seeds`, counted by the world's oracle.
    """

    out: str = Field(min_length=1)
    model: str = Field(min_length=1)
    data: list[str] = Field(min_length=1)
    world: WorldSection | None = None
    seeds: list[int] = []
    test: list[str] = []
    methods: list[str] = ["sft", "knowtuning"]
    seed: int = Field(42, ge=0, lt=2**32)
    limit: int | None = Field(None, gt=0)
    template: Literal["alpaca", "chat"] = "alpaca"
    max_length: int = Field(1024, gt=1)
    too_long: Literal["error", "drop"] = "error"
    hold_out: int = Field(100, ge=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4"] = "none"
    processes: int = Field(1, gt=0)
    torchrun: dict[str, str | int] = {}
    lora: dict[str, Any] | None = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    trainer: TrainerSection = TrainerSection()
    sft: TrainerSection = TrainerSection()
    ka: TrainerSection = TrainerSection()
    kc: KcSection = KcSection()
    rlaif: RlaifSection = RlaifSection()
    facttune: FactTuneSection = FactTuneSection()
    build: dict[str, Any] = {}
    generate: dict[str, Any] = {}
    evaluate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Training:
    """One model to train: its folder's name, its stage, what it starts from (None: the base model), which pairs it sees.

    `baseline` names the rival whose preferences take the place of the KC pairs.
    """

    name: str
    stage: Stage
    start: str | None = None
    aspects: tuple[str, ...] = ASPECTS
    baseline: Baseline | None = None


SFT, KA = Training("sft", "sft"), Training("ka", "ka")
METHODS: dict[str, tuple[Training, ...]] = {
    "sft": (SFT,),
    "rlaif": (SFT, Training("rlaif", "kc", "sft", ("helpfulness",), "rlaif")),
    "facttune": (SFT, Training("facttune", "kc", "sft", ("factuality",), "facttune")),
    "knowtuning": (KA, Training("kc", "kc", "ka")),
    "-KA": (SFT, Training("kc-without-ka", "kc", "sft")),
    "-KC": (KA,),
    **{
        f"-K{aspect[0].upper()}C": (
            KA,
            Training(f"kc-without-{aspect}", "kc", "ka", tuple(other for other in ASPECTS if other != aspect)),
        )
        for aspect in ASPECTS
    },
}
"""The trainings of each method and baseline of the paper, in order; the last is the method's model. Equal ones are shared."""


def folder_of(config: ExperimentConfig, name: str) -> Path:
    """Return where a training of this name writes."""
    return Path(config.out) / name


def preferences_of(config: ExperimentConfig, baseline: Baseline) -> Path:
    """Return the folder of a baseline's sampled answers and the preferences among them."""
    return Path(config.out) / "preferences" / baseline


def data_of(config: ExperimentConfig, training: Training) -> Path:
    """Return the rows that a training reads: D itself for SFT, a baseline's preferences, or what `kt build-data` made."""
    if training.stage == "sft":
        return folder_of(config, training.name) / "rows.jsonl"
    if training.baseline:
        return preferences_of(config, training.baseline) / "sets" / f"{training.baseline}.jsonl"
    return Path(config.out) / "data" / "sets" / f"{training.stage}.jsonl"


def is_experiment(values: Mapping[str, Any]) -> bool:
    """Say whether a config is a whole experiment, not that of one command."""
    return not {"build", "evaluate", "methods", "sft", "ka", "kc", "lora", "test"}.isdisjoint(values)


def read_experiment(path: str | Path, given: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read an experiment's YAML; `given` goes before what the file says. ConfigError names file, line and key."""
    found = find_shipped("configs", path)
    values = read_yaml(found)
    values.update({key: value for key, value in (given or {}).items() if value is not None})
    config = validate(ExperimentConfig, values, found)
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.methods:
        raise ConfigError(f"{found}: methods: unknown: {', '.join(unknown) or '(none)'}; known methods: {', '.join(METHODS)}")
    if config.evaluate is not None and not config.test:
        raise ConfigError(f"{found}: evaluate: no questions to answer: name them under `test`, or leave it out")
    return config


def baseline_of(config: ExperimentConfig, baseline: Baseline) -> RlaifSection | FactTuneSection:
    """Return a baseline's section of the config."""
    return config.rlaif if baseline == "rlaif" else config.facttune


def trainer_settings(config: ExperimentConfig, stage: Stage, baseline: Baseline | None = None) -> dict[str, Any]:
    """Return a stage's trainer settings: the paper's, then the config's for all stages, its own, and a baseline's."""
    own = baseline_of(config, baseline).settings() if baseline else {}
    return {**PAPER, **PAPER_STAGE[stage], **config.trainer.settings(), **getattr(config, stage).settings(), **own}


@contextmanager
def setting_errors(stage: Stage, keys: str = "", started: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what a trainer says against its settings, before it has `started`, into a ConfigError."""
    try:
        yield
    except (TypeError, ValueError, ImportError, ZeroDivisionError) as error:
        if started():
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"trainer or {stage}: {said}{keys}") from error


def loss_settings(config: ExperimentConfig, training: Training) -> KcSection:
    """Return what a KC training's loss is made of; a baseline's is plain DPO (γ 0) against the model it starts from."""
    if training.baseline is None:
        return config.kc
    beta = baseline_of(config, training.baseline).beta or config.kc.beta
    return config.kc.model_copy(update={"beta": beta, "gamma": 0.0, "reference": "ka"})


def needed_trainings(config: ExperimentConfig) -> list[Training]:
    """Return what must be trained for the config's methods, each once, in an order in which each start is there."""
    found = dict.fromkeys(training for method in config.methods for training in METHODS[method])
    if needs_scorer(config):
        found = {SFT: None, **found}
    return sorted(found, key=lambda one: ("sft", "ka", "kc").index(one.stage))


def needs_build(config: ExperimentConfig) -> bool:
    """Say whether a method trains on what `kt build-data` makes; SFT and the baselines do not."""
    return any(one.stage != "sft" and one.baseline is None for method in config.methods for one in METHODS[method])


def needs_scorer(config: ExperimentConfig) -> bool:
    """Say whether the data are chosen by perplexity under the `sft` model of this experiment."""
    said = config.build.get("difficulty")
    difficulty = said if isinstance(said, Mapping) else {}  # what is no section is named where it is validated
    return needs_build(config) and difficulty.get("mode", "ppl") == "ppl" and not difficulty.get("scorer")


def evaluate_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings of an experiment's `kt evaluate`: its section `evaluate`, filled up from the rest.

    Unless the section says otherwise: the judge is the model of `build`, asked in the same way with the same prompts, and
    knowtuning is compared with the others (or the first method, without it). One method alone is not compared.
    """
    own = dict(config.evaluate or {})
    metrics = own.get("metrics", EvaluateConfig.model_fields["metrics"].get_default())
    named = [name for name in metrics if isinstance(name, str)] if isinstance(metrics, list) else []
    if len(config.methods) == 1 and named == metrics:
        metrics = [name for name in named if name != "judge"] or metrics
    asked = {"judge", "score", "facts"} & set(named)
    judge = {key: config.build[key] for key in JudgeConfig.model_fields if key in config.build}
    kept = {*BuildConfig.model_fields} & {*EvaluateConfig.model_fields} - {"data", "out", "limit", "seed"}
    return {
        "seed": config.seed,
        **{key: config.build[key] for key in kept if key in config.build},
        **({"judge": judge} if asked else {}),
        **({"compare": "knowtuning"} if "judge" in named and "knowtuning" in config.methods else {}),
        **own,
        "metrics": metrics,
        "data": config.test,
        "answers": {method: str(Path(config.out) / "generate" / method) for method in config.methods},
        "out": str(Path(config.out) / "evaluate"),
    }


def build_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an experiment's `kt build-data`: its section `build`, filled up from the rest.

    Unless the section says otherwise: the experiment's data, seed and limit, its folder, and facts chosen by perplexity
    under its own `sft` model.
    """
    build = dict(values.get("build") or {})
    shared = {key: values[key] for key in ("data", "seed", "limit") if values.get(key) is not None}
    filled = {"out": str(Path(str(values.get("out", ""))) / "data"), **shared, **build}
    difficulty = dict(filled.get("difficulty") or {})
    if difficulty.get("mode", "ppl") == "ppl" and not difficulty.get("scorer"):
        sft = str(Path(str(values.get("out", ""))) / SFT.name)
        adapter = {} if values.get("lora", True) is None else {"adapter": sft}
        difficulty |= {"scorer": values.get("model") if adapter else sft, **adapter}
        difficulty.setdefault("template", values.get("template", "alpaca"))
        filled["difficulty"] = difficulty
    return filled
