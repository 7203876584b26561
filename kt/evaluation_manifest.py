"""What an evaluation leaves and what proves it: its folder, the settings that can change a number, hashes of all files."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kt import __version__
from kt.backends import REVISION_LENGTH, model_name
from kt.config import EvaluateConfig, JudgeConfig
from kt.errors import InputError
from kt.evidence import files_of
from kt.metrics import read_encoder
from kt.pipeline import StepResult
from kt.prompts import Prompt
from kt.records import file_hash, input_hashes, write_json
from kt.weights import fingerprint
from kt.wordnet import wordnet_hash

FOLDERS = ("items", "metrics", "judge", "judge-2", "score", "split", "check", "facts")
"""Every folder that an evaluation may write."""
WRITTEN = ("records.jsonl", "rejected.jsonl", "manifest.json")
"""What it writes into them."""


def check_out(config: EvaluateConfig) -> None:
    """Fail before anything is written over: an evaluation has a folder of its own, with nothing in it that it reads."""
    out = Path(config.out)
    if out.is_dir():
        others = [path.name for path in sorted(out.iterdir()) if path.is_dir() and path.name not in FOLDERS]
        others += ["records.jsonl"] if (out / "records.jsonl").exists() else []
        own = [path for name in FOLDERS for path in (out / name).glob("*")]
        others += sorted(str(path.relative_to(out)) for path in own if path.name not in WRITTEN)
        if others:
            raise InputError(
                f"--out {out}: holds other files ({', '.join(others[:5])}); give a folder for the evaluation alone"
            )
    documents = config.evidence if evidence_kind(config) == "collection" else []
    for place in (*config.answers.values(), *documents):
        if out.resolve() in Path(place).resolve().parents:
            raise InputError(f"--out {out}: {place} lies in it and is read; give a folder for the evaluation alone")


def clear(out: Path) -> None:
    """Remove what an earlier evaluation left: this one may have other parts."""
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("manifest.json", "results.json", "inputs.json"):  # the last is an experiment's: done with these inputs
        (out / name).unlink(missing_ok=True)


def judge_name(one: JudgeConfig) -> str:
    """Name a judge without where its files lie."""
    return model_name(one.model) + (f"@{one.revision}" if one.revision else "")


def evidence_kind(config: EvaluateConfig) -> str:
    """Say what facts are checked against: "gold", "none" or "collection"."""
    return config.evidence[0] if config.evidence in (["gold"], ["none"]) else "collection"


def settings(config: EvaluateConfig) -> dict[str, Any]:
    """Return the part of the config that can change a number, without paths, which differ between machines."""
    said = config.model_dump(include={"metrics", "limit", "seed"})
    if config.judge:
        said |= {"prompts": Path(config.prompts).name, "attempts": config.attempts, "judge": judge_name(config.judge)}
    if {"judge", "score"} & set(config.metrics):
        said["criteria"] = config.criteria
    if "judge" in config.metrics:
        said |= {"rule": config.rule, "all_pairs": config.all_pairs}
        said |= {"compare": config.compare} if config.compare else {}
        said["second_judge"] = judge_name(config.second_judge) if config.second_judge else None
    if "facts" in config.metrics:
        said["evidence"] = evidence_kind(config)
    if "meteor" in config.metrics:
        said["wordnet"] = wordnet_hash()[:REVISION_LENGTH]
    if "bertscore" in config.metrics:
        encoder = read_encoder(config.encoder or "", config.encoder_layer)
        weights = fingerprint(encoder.folder)[:REVISION_LENGTH]
        said["encoder"] = {"name": encoder.folder.resolve().name, "weights": weights, "layer": encoder.layer}
    return said


def write_evaluation_manifest(
    out: Path, config: EvaluateConfig, prompts: Mapping[str, Prompt], steps: Iterable[StepResult]
) -> None:
    """Write manifest.json, last: its existence means that the evaluation is done."""
    written = sorted(path for name in FOLDERS for path in (out / name).glob("*.jsonl"))
    manifest = {
        "kind": "evaluate",
        "kt": __version__,
        "libraries": _libraries(config),
        "config": settings(config),
        "inputs": inputs(config),
        "prompts": {name: prompt.hash for name, prompt in sorted(prompts.items())},
        "steps": {step.name: {"read": step.read, "written": step.written, "rejected": step.rejected} for step in steps},
        "outputs": {str(path.relative_to(out)): file_hash(path) for path in [out / "results.json", *written]},
    }
    write_json(out / "manifest.json", manifest)


def _libraries(config: EvaluateConfig) -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    names = ["scipy"]
    if {"meteor", "meteor-no-wordnet"} & set(config.metrics) or config.second_judge:
        names.append("nltk")
    if "bertscore" in config.metrics:
        names += ["bert-score", "torch", "transformers"]
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def inputs(config: EvaluateConfig) -> dict[str, str]:
    """Return the hashes of all files that an evaluation reads."""
    found = input_hashes(config.data)
    for name, place in config.answers.items():
        path = Path(place)
        found[f"answers/{name}"] = file_hash(path / "records.jsonl" if path.is_dir() else path)
    if "facts" in config.metrics and evidence_kind(config) == "collection":
        files = [named for path in config.evidence for named in files_of(path).items()]
        found |= {f"evidence/{name}": file_hash(file) for name, file in files}
    return found
