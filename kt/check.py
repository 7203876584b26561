"""Look over configs, prompts and data before anything is asked: what is wrong, and what is suspicious. No network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt.answers import read_answers
from kt.config import BuildConfig, EvaluateConfig, find_shipped, read_yaml, validate
from kt.errors import KtError
from kt.evaluate import as_writer, evidence_of, judges_of, needed_prompts
from kt.evaluation_manifest import check_out
from kt.experiment_settings import build_config, check_settings
from kt.items import read_items
from kt.metrics import read_encoder
from kt.prompts import load_prompts
from kt.records import Record
from kt.train_config import ExperimentConfig, is_experiment, needs_build, read_experiment

SHORT_ANSWER_WORDS = 10
"""The paper keeps answers of at least this many words: shorter ones hold hardly a fact."""
SHOWN = 5


@dataclass
class Report:
    """What was looked at, what is wrong (the command will fail) and what is suspicious (it will not)."""

    looked_at: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(configs: Sequence[str], prompts: Sequence[str], data: Sequence[str], test: Sequence[str]) -> Report:
    """Check everything named; a config's own prompts and data are checked too."""
    report = Report()
    data, prompts = list(data), list(prompts)
    test = list(test)
    for path in configs:
        try:
            config = _config(path, test)
        except KtError as error:
            report.problems.append(str(error))
            continue
        report.looked_at.append(f"{path}: config of {config.out}")
        (test if isinstance(config, EvaluateConfig) else data).extend(name for name in config.data if name != "-")
        if isinstance(config, BuildConfig):
            prompts.append(config.prompts)
    for name in dict.fromkeys(prompts):
        _prompts(name, report)
    questions = _questions(dict.fromkeys(data), report)
    _leaks(questions, _questions(dict.fromkeys(test), report), report)
    return report


def _config(path: str, test: list[str]) -> BuildConfig | EvaluateConfig | ExperimentConfig:
    """Check a config of any kind, told apart by its keys."""
    values = read_yaml(find_shipped("configs", path))
    if is_experiment(values):
        return _experiment(path, test)
    if (EvaluateConfig.model_fields.keys() - BuildConfig.model_fields.keys()).isdisjoint(values):
        return validate(BuildConfig, values, path)
    return _evaluation(path, values)


def _evaluation(path: str, values: Record) -> EvaluateConfig:
    """Check an evaluation and what it reads beside its data: prompts, answers, encoder, documents."""
    config = validate(EvaluateConfig, values, path)
    needed_prompts(config)
    for one in judges_of(config):
        as_writer(config, one)
    for name, place in config.answers.items():
        read_answers(name, place)
    if "bertscore" in config.metrics:
        read_encoder(config.encoder or "", config.encoder_layer)
    check_out(config)
    with contextlib.ExitStack() as stack:
        evidence_of(config, stack)
    return config


def _experiment(path: str, test: list[str]) -> BuildConfig | ExperimentConfig:
    """Check a whole experiment, and its test items beside the others; return what its data are made by, if they are."""
    config = read_experiment(path)
    check_settings(config, files=False)  # what is no file is said of each where it is read
    test += config.test
    return build_config(config) if needs_build(config) else config


def _prompts(name: str, report: Report) -> None:
    try:
        found = load_prompts(name)
    except KtError as error:
        report.problems.append(str(error))
        return
    for needed in ("extract", "rewrite-question", "rewrite-answer", "rephrase", "revise"):
        if needed not in found:
            report.problems.append(f"prompts {name}: no {needed}.yaml, which build-data needs")
    report.looked_at.append(f"prompts {name}: {', '.join(found)}")


def _questions(paths: Iterable[str], report: Report) -> dict[str, list[str]]:
    """Read files and return, by question in one spelling, where it stands."""
    questions: dict[str, list[str]] = {}
    for path in paths:
        try:
            _read(path, questions, report)
        except KtError as error:
            report.problems.append(str(error))
    return questions


def _read(path: str, questions: dict[str, list[str]], report: Report) -> None:
    count, rejects, short = 0, [], []
    places: dict[str, list[str]] = {}
    for read in read_items([path]):
        if read.item is None:
            rejects.append(f"{read.where}: {read.reason}")
            continue
        count += 1
        places.setdefault(_spelling(read.item["question"]), []).append(read.where)
        if len(read.item["answer"].split()) < SHORT_ANSWER_WORDS:
            short.append(read.where)
    report.looked_at.append(f"{path}: {count} items, {len(places)} different questions")
    repeated = [where for where in places.values() if len(where) > 1]
    if rejects:
        report.warnings.append(f"{path}: {len(rejects)} items cannot be used: {_some(rejects)}")
    if repeated:
        again = sum(len(where) - 1 for where in repeated)
        first = _some([" and ".join(Path(w).name for w in where[:2]) for where in repeated])
        report.warnings.append(f"{path}: {again} items repeat the question of an earlier one: {first}")
    if short:
        report.warnings.append(f"{path}: {len(short)} answers of under {SHORT_ANSWER_WORDS} words: {_some(short)}")
    for question, where in places.items():
        questions.setdefault(question, []).extend(where)


def _leaks(train: dict[str, list[str]], test: dict[str, list[str]], report: Report) -> None:
    leaked = [f"{test[q][0]} = {train[q][0]}" for q in test if q in train]
    if leaked:
        report.warnings.append(f"{len(leaked)} test questions also stand in the training data: {_some(leaked)}")


def _some(found: Sequence[Any]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(map(str, found[:SHOWN])) + more


def _spelling(question: str) -> str:
    return " ".join(question.split()).casefold()
