"""Train one model of an experiment: SFT and KA through TRL, KC through its own loss; resumable, and done once."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt import __version__
from kt.errors import InputError, KtError, OutputError, TrainingError
from kt.items import read_items
from kt.launch import launch
from kt.offline import go_offline
from kt.records import Record, file_hash, read_jsonl, write_json, write_jsonl
from kt.train_config import ExperimentConfig, Training, data_of, folder_of, loss_settings, setting_errors, trainer_settings
from kt.weights import check_base, fingerprint

VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate")
OUTPUTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "curves.jsonl")


@dataclass(frozen=True)
class TrainResult:
    """What a training did: `steps` taken in all, its last or best losses, and whether it had been done before."""

    name: str
    folder: Path
    steps: int
    rows: int
    loss: float | None
    skipped: bool = False


def train(config: ExperimentConfig, training: Training, *, quiet: bool = False) -> TrainResult:
    """Train what is not trained yet: from the last good checkpoint if there is one, on several processes if asked for.

    Raises InputError, TrainingError or OutputError; the checkpoints written before stay as they are.
    """
    go_offline()
    folder = folder_of(config, training.name)
    with _output_errors(folder):
        if training.stage == "sft":
            _write_items(config, data_of(config, training))
        said = inputs(config, training)
        done = finished(folder, said)
        if done is not None:
            return _result(training.name, folder, done, skipped=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "training.json", {"config": config.model_dump(mode="json"), "training": dataclasses.asdict(training)}
        )
    if config.processes > 1 or config.torchrun:
        launch(folder / "training.json", config.processes, config.torchrun, quiet)
    else:
        train_here(config, training, quiet=quiet)
    done = finished(folder, said)
    if done is None:
        raise TrainingError(f"{folder}: the training ended without its manifest; see the messages above")
    return _result(training.name, folder, done, skipped=False)


def train_here(config: ExperimentConfig, training: Training, *, quiet: bool = False) -> None:
    """Train in this process (one rank of several, or the only one) and write the adapter, the curves and the manifest."""
    folder = folder_of(config, training.name)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # where report_to: [tensorboard] writes
    with _output_errors(folder), _memory_errors(training):
        if training.stage == "kc":
            from kt.train_stages import kc_trainer as make
        else:
            from kt.train_stages import sft_trainer as make
        prepared = make(config, training, quiet)
        trainer = prepared.trainer
        if trainer.is_world_process_zero():  # only now, when the settings are accepted
            _begin(folder, inputs(config, training))
        trainer.accelerator.wait_for_everyone()
        with setting_errors(training.stage, started=lambda: trainer.state.global_step > 0):
            trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
        _save(trainer, folder)
        if trainer.is_world_process_zero():
            _finish(config, training, prepared, folder)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()


# ---- what a training depends on, and whether it is done ----------------------------------------------------------------


def inputs(config: ExperimentConfig, training: Training) -> Record:
    """Return all that a training's result depends on: settings, rows, weights. Equal inputs need no second training."""
    rows = data_of(config, training)
    if not rows.exists():
        how = "kt run" if training.baseline else "kt build-data, or kt run"
        raise InputError(f"{rows}: not there; build the data first: {how}")
    start = folder_of(config, training.start) if training.start else None
    if start is not None and not (start / "manifest.json").exists():
        raise InputError(f"{start}: no finished training; train it first: kt train --stage {training.start}")
    if start is not None:
        check_base(config.model, start)
    kept = {"seed", "template", "max_length", "too_long", "hold_out", "dtype", "quantization", "lora"}
    settings = config.model_dump(mode="json", include=kept)
    kc = training.stage == "kc"
    loss = loss_settings(config, training).model_dump(include={"beta", "gamma", "reference"}) if kc else {}
    trainer = trainer_settings(config, training.stage, training.baseline)
    return {
        "stage": training.stage,
        "aspects": list(training.aspects) if kc else [],
        "settings": {**settings, **loss, "trainer": trainer},
        "processes": {"on_a_host": config.processes, "hosts": config.torchrun.get("nnodes", 1)},  # a step's rows depend on it
        "rows": file_hash(rows),
        "model": fingerprint(config.model),
        "start": fingerprint(start) if start else None,
    }


def finished(folder: Path, said: Record) -> Record | None:
    """Return the manifest of a training with these inputs whose outputs are as it left them, or None."""
    manifest = _read_manifest(folder)
    if manifest.get("inputs") != json.loads(json.dumps(said)):
        return None
    outputs = manifest.get("outputs", {})
    same = all((folder / name).exists() and file_hash(folder / name) == digest for name, digest in outputs.items())
    return manifest if outputs and same else None


def _read_manifest(folder: Path) -> Record:
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _begin(folder: Path, said: Record) -> None:
    """Remove the manifest, and the checkpoints of a training with other inputs: going on from them would mix the two."""
    (folder / "manifest.json").unlink(missing_ok=True)
    mark = folder / "inputs.json"
    try:
        same = json.loads(mark.read_bytes()) == json.loads(json.dumps(said))
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(mark, said)


def last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written to its end, and remove what was not: the trainer's state comes last."""
    numbered = [(int(path.name.rsplit("-", 1)[1]), path) for path in folder.glob("checkpoint-*")]
    for _, path in sorted(numbered, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_bytes())
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return None


def _write_items(config: ExperimentConfig, path: Path) -> None:
    """Write the items of the question-answer files as SFT rows, unless they stand there."""
    found = [one for one in read_items(config.data, config.limit) if one.item is not None]
    rows = [{"id": o.item["id"], "prompt": o.item["question"], "completion": o.item["answer"]} for o in found if o.item]
    if not rows:
        raise InputError(f"{', '.join(config.data)}: no usable item; see `kt check --data`")
    if not path.exists() or list(read_jsonl(path)) != rows:
        write_jsonl(path, rows)


# ---- what a training leaves --------------------------------------------------------------------------------------------


def _save(trainer: Any, folder: Path) -> None:
    """Save the model beside the checkpoints, then move its files to their places."""
    draft = folder / "weights.part"
    if trainer.is_world_process_zero():
        shutil.rmtree(draft, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()  # so that nobody's draft is removed
    trainer.save_model(str(draft))
    if trainer.is_world_process_zero():
        for name in ("training_args.bin", "README.md"):  # a pickle, and a form to fill in
            (draft / name).unlink(missing_ok=True)
        _in_one_order(draft / "adapter_config.json")
        for old in _outputs(folder):  # a training of all weights leaves no adapter of an earlier one beside them
            old.unlink()
        for file in draft.iterdir():
            file.replace(folder / file.name)
        draft.rmdir()


def _outputs(folder: Path) -> list[Path]:
    return sorted(file for pattern in OUTPUTS for file in folder.glob(pattern))


def _in_one_order(path: Path) -> None:
    """Sort what PEFT keeps as a set and writes in any order: the same training leaves the same fingerprint."""
    if path.exists():
        settings = json.loads(path.read_bytes())
        if isinstance(settings.get("target_modules"), list):
            settings["target_modules"].sort()
        write_json(path, settings)


def _finish(config: ExperimentConfig, training: Training, prepared: Any, folder: Path) -> None:
    from kt.train_display import write_curves

    state = prepared.trainer.state
    write_curves(folder, state.log_history)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    manifest = {
        "kind": "train",
        "name": training.name,
        "kt": __version__,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "inputs": inputs(config, training),
        "counts": prepared.counts,
        "result": {
            "steps": state.global_step,
            "best_step": state.best_global_step or state.global_step,
            "held_out_loss": state.best_metric,
            "loss": losses[-1] if losses else None,
        },
        "outputs": {file.name: file_hash(file) for file in _outputs(folder)},
    }
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _result(name: str, folder: Path, manifest: Record, *, skipped: bool) -> TrainResult:
    result = manifest["result"]
    return TrainResult(name, folder, result["steps"], manifest["counts"]["rows"], result["loss"], skipped)


# ---- errors ------------------------------------------------------------------------------------------------------------


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, in whichever library's words, into a sentence; what was saved before is kept."""
    try:
        yield
    except KtError:
        raise
    except Exception as error:
        text = str(error).lower()
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text
        if full or "file write failed" in text or "unexpected pos" in text:
            raise OutputError(
                f"{folder}: cannot be written: the disk is full; free some space and run again:"
                " training goes on from the last whole checkpoint"
            ) from error
        if isinstance(error, PermissionError):
            raise OutputError(f"{error.filename or folder}: cannot be written: {error.strerror}; choose another out") from error
        raise


@contextmanager
def _memory_errors(training: Training) -> Iterator[None]:
    from kt.models import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{training.name}: memory ran out: lower per_device_train_batch_size and raise gradient_accumulation_steps by"
            " the same factor, set gradient_checkpointing: true, or lower max_length; the last checkpoint is kept"
        ) from error
