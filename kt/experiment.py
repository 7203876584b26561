"""A whole experiment: every stage in order, each done once, skipping what is up to date."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt.backends import model_name
from kt.baselines import build_preferences, needed_prompts
from kt.build import build_data
from kt.client import Counters
from kt.config import BuildConfig, GenerateConfig, find_shipped
from kt.evaluate import evaluate
from kt.evaluation_manifest import inputs as evaluation_inputs
from kt.evaluation_manifest import settings as evaluation_settings
from kt.experiment_settings import build_config, check_settings, evaluate_config, existing, generate_config, sample_config
from kt.generation import generate
from kt.progress import Display
from kt.prompts import load_prompts
from kt.records import Record, file_hash, write_json
from kt.train import train
from kt.train_config import (
    Baseline,
    ExperimentConfig,
    Training,
    baseline_of,
    needed_trainings,
    needs_build,
    preferences_of,
)
from kt.weights import combined_fingerprint, fingerprint


@dataclass(frozen=True)
class StageResult:
    """What became of a stage: its name and folder, whether it had been done before, and a sentence about it."""

    name: str
    folder: Path
    skipped: bool
    about: str


Say = Callable[[StageResult], None]


def run_experiment(config: ExperimentConfig, *, quiet: bool = False, say: Say = lambda _: None) -> list[StageResult]:
    """Run sft, build-data, the trainings of the methods, their answers, the evaluation; `say` hears of each at its end.

    A baseline's preferences are made before its training. Settings of all stages are checked before the first.

    A stage is skipped if all that it depends on, and what it wrote, is as it was. Engines that a stage starts are stopped
    at its end, before another takes the device.
    """
    check_settings(config)
    results: list[StageResult] = []

    def done(result: StageResult) -> None:
        results.append(result)
        say(result)

    trainings = needed_trainings(config)
    for training in (one for one in trainings if one.stage == "sft"):
        done(_train(config, training, quiet))
    if needs_build(config):
        done(_build(config, quiet))
    for training in (one for one in trainings if one.stage != "sft"):
        if training.baseline:
            done(_prefer(config, training.baseline, quiet))
        done(_train(config, training, quiet))
    if config.test:
        for method in config.methods:
            done(_generate(config, method, quiet))
    if config.evaluate is not None:
        done(_evaluate(config, quiet))
    return results


def _train(config: ExperimentConfig, training: Training, quiet: bool) -> StageResult:
    result = train(config, training, quiet=quiet)
    loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
    return StageResult(result.name, result.folder, result.skipped, f"{result.rows} rows, {result.steps} steps{loss}")


def _build(config: ExperimentConfig, quiet: bool) -> StageResult:
    """Build the data unless they are up to date; what is cached is never asked again."""
    build = build_config(config)
    out = Path(build.out)
    skipped = _up_to_date(out, said := _inputs(build))
    if not skipped:
        _begin(out)
        with _display(quiet) as shown:
            build_data(build, **shown)
        write_json(out / "inputs.json", said)
    sets = _read(out / "manifest.json")["sets"]
    return StageResult("data", out, skipped, f"{sets['ka']} rows for stage I, {sets['kc']} pairs for stage II")


def _prefer(config: ExperimentConfig, baseline: Baseline, quiet: bool) -> StageResult:
    """Sample answers to the training questions from the `sft` model and make a baseline's preferences of them."""
    build, sampling, own = build_config(config), sample_config(config, baseline), baseline_of(config, baseline)
    settings = own.model_dump(mode="json", include={"criteria", "rule", "evidence"})
    out = preferences_of(config, baseline)
    said = {
        "sampling": _answering(sampling),
        "settings": {**settings, **build.model_dump(mode="json", include={"seed", "attempts", "backend", "revision"})},
        "prompts": {name: prompt.hash for name, prompt in needed_prompts(baseline, build.prompts).items()},
        "model": _weights(build.model),
    }
    skipped = _up_to_date(out, said)
    if not skipped:
        _begin(out)
        with _display(quiet) as shown:
            generate(sampling, **shown)
        with _display(quiet) as shown:
            build_preferences(baseline, build, Path(sampling.out), out, settings, **shown)
        write_json(out / "inputs.json", said)
    manifest = _read(out / "manifest.json")
    asked = manifest["steps"]["answers"]["read"]
    about = f"{manifest['sets'][baseline]} pairs of {asked} questions"
    return StageResult(f"{baseline} preferences", out, skipped, about)


def _answering(settings: GenerateConfig) -> Record:
    """Return all that a model's answers depend on."""
    kept = {"template", "max_tokens", "temperature", "top_p", "seed", "dtype", "limit", "backend"}
    kept |= {"samples"} if settings.samples > 1 else set()
    [adapter] = settings.named.values()
    return {
        "settings": settings.model_dump(mode="json", include=kept),
        "data": [file_hash(existing(path)) for path in settings.data],
        "weights": combined_fingerprint(settings.model, adapter),
    }


def _generate(config: ExperimentConfig, method: str, quiet: bool) -> StageResult:
    """Answer the test questions with a method's model, unless they are answered."""
    settings = generate_config(config, method)
    out = Path(settings.out) / method
    said = _answering(settings)
    skipped = _up_to_date(out, said)
    if not skipped:
        _begin(out)
        with _display(quiet) as shown:
            generate(settings, **shown)
        write_json(out / "inputs.json", said)
    written = _read(out / "manifest.json")["written"]
    return StageResult(f"generate {method}", out, skipped, f"{written} answers")


def _evaluate(config: ExperimentConfig, quiet: bool) -> StageResult:
    """Measure the methods' answers, unless it is done; what judges said before is never asked again."""
    settings = evaluate_config(config)
    out = Path(settings.out)
    judges = [one for one in (settings.judge, settings.second_judge) if one is not None]
    said = {
        "settings": evaluation_settings(settings),
        "files": evaluation_inputs(settings),
        "prompts": {name: prompt.hash for name, prompt in load_prompts(settings.prompts).items()} if judges else {},
        "judges": [_weights(one.model) for one in judges],
    }
    skipped = _up_to_date(out, said)
    if not skipped:
        _begin(out)
        with _display(quiet) as shown:
            evaluate(settings, **shown)
        write_json(out / "inputs.json", said)
    items = _read(out / "results.json")["items"]["used"]
    return StageResult("evaluate", out, skipped, f"{items} items, {len(settings.answers)} methods")


@contextlib.contextmanager
def _display(quiet: bool) -> Iterator[dict[str, Any]]:
    """Give the arguments that let a stage show how it goes on."""
    if quiet:
        yield {}
        return
    counters = Counters()
    with Display(counters) as display:
        yield {"watcher": display, "counters": counters, "on_wait": display.waiting}


def _begin(out: Path) -> None:
    (out / "inputs.json").unlink(missing_ok=True)


def _up_to_date(out: Path, said: Record) -> bool:
    """Say whether a stage was done with these inputs and its outputs are as it left them."""
    outputs: dict[str, str] = _read(out / "manifest.json").get("outputs", {})
    whole = all((out / name).exists() and file_hash(out / name) == digest for name, digest in outputs.items())
    return bool(outputs) and whole and bool(_read(out / "inputs.json") == said)


def _inputs(build: BuildConfig) -> Record:
    """Return all that the data depend on: settings, questions, prompts, the weights of who writes and who scores."""
    kept = {"seed", "limit", "attempts", "difficulty", "delete_share", "aspects", "rejected", "backend", "fallback", "revision"}
    settings = build.model_dump(mode="json", include=kept)
    difficulty = build.difficulty
    scorer = (
        combined_fingerprint(difficulty.scorer, difficulty.adapter) if difficulty.mode == "ppl" and difficulty.scorer else None
    )
    settings["difficulty"] = {key: value for key, value in settings["difficulty"].items() if key not in ("scorer", "adapter")}
    return {
        "settings": settings,
        "data": [file_hash(existing(path)) for path in build.data],
        "prompts": {name: prompt.hash for name, prompt in load_prompts(find_shipped("prompts", build.prompts)).items()},
        "model": _weights(build.model),
        "scorer": scorer,
    }


def _weights(model: str) -> list[str | None]:
    """Name who writes or judges, with its weights if they are on this machine."""
    return [model_name(model), fingerprint(model) if Path(model).exists() else None]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def as_table(results: Iterable[StageResult]) -> str:
    """Return the stages as lines of text."""
    return "\n".join(f"{one.name:26} {'up to date' if one.skipped else 'done':11} {one.about}; {one.folder}" for one in results)
