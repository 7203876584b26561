"""The trainers of the stages, ready to run: TRL's SFTTrainer for SFT and KA, the KcTrainer for KC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from kt.config import find_shipped
from kt.errors import InputError
from kt.models import load_trainable
from kt.preference_data import PackedItem, pack_pairs, read_pairs
from kt.records import write_json
from kt.template import check_ending
from kt.train_config import ExperimentConfig, Training, data_of, folder_of, loss_settings, setting_errors, trainer_settings
from kt.train_display import TrainingDisplay
from kt.train_rows import encode_rows, hold_out, read_answers, refuse_or_drop
from kt.weights import combined_fingerprint, fingerprint


@dataclass(frozen=True)
class Prepared:
    """A trainer, and the counts of what it trains on: rows (or pairs), held out, too long."""

    trainer: Any
    counts: dict[str, int]


def sft_trainer(config: ExperimentConfig, training: Training, quiet: bool) -> Prepared:
    """Prepare SFT or KA: completion-only loss from the base model, the best step by held-out loss."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, dtype = _load(config, None)
    made, too_long = encode_rows(tokenizer, read_answers(data_of(config, training)), config.template, config.max_length)
    refuse_or_drop(too_long, config.max_length, config.too_long)
    rows, apart = hold_out(made, config.hold_out, config.seed)
    if not rows:
        raise InputError(f"{data_of(config, training)}: no row has {config.max_length} tokens or fewer: raise max_length")
    settings = {"max_length": None, "completion_only_loss": None, "gradient_checkpointing": False}
    args = _arguments(SFTConfig, config, training, dtype, settings, evaluated=bool(apart))
    columns = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    held_out = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in apart]
    with setting_errors(training.stage):
        trainer = SFTTrainer(
            model,
            args,
            train_dataset=Dataset.from_list(columns),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
        )
    _set_display(trainer, training, sum(len(row["input_ids"]) for row in rows), quiet)
    return Prepared(trainer, {"rows": len(rows), "held_out": len(apart), "too_long": len(too_long)})


def kc_trainer(config: ExperimentConfig, training: Training, quiet: bool) -> Prepared:
    """Prepare KC: the starting adapter goes on, the reference's log-probabilities are computed once and kept."""
    import torch
    from transformers import TrainingArguments
    from trl.trainer.utils import disable_dropout_in_model

    from kt.train_kc import KcTrainer, ReferencedItem, with_reference

    assert training.start is not None
    start = folder_of(config, training.start)
    model, tokenizer, dtype = _load(config, start)
    disable_dropout_in_model(model)  # with it, the policy would be off its reference from the start
    pairs = [pair for pair in read_pairs(data_of(config, training)) if pair["aspect"] in training.aspects]
    if not pairs:
        raise InputError(f"{data_of(config, training)}: no pair of {', '.join(training.aspects)}")
    items, too_long = pack_pairs(tokenizer, pairs, config.template, config.max_length)
    refuse_or_drop(too_long, config.max_length, config.too_long)
    if not items:
        raise InputError(f"{data_of(config, training)}: no pair fits into {config.max_length} tokens: raise max_length")
    args = _arguments(TrainingArguments, config, training, dtype, {}, evaluated=False)
    loss = loss_settings(config, training)
    computing = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    known = reference_file(config, training, items, (dtype, str(computing)))
    if known.exists():
        referenced = [ReferencedItem(item, row) for item, row in zip(items, json.loads(known.read_bytes()), strict=True)]
    else:
        if loss.reference == "base" and _is_whole(start):  # no adapter to put aside: the base is another model
            referenced = with_reference(_load(config, None, lora=False)[0].to(args.device), items, "ka", computing)
        else:
            referenced = with_reference(model.to(args.device), items, loss.reference, computing)
        if args.process_index == 0:
            write_json(known, [one.reference for one in referenced])
    weights = {"beta": loss.beta, "gamma": loss.gamma}
    with setting_errors(training.stage):
        trainer = KcTrainer(model, args, train_dataset=referenced, processing_class=tokenizer, **weights)
    _set_display(trainer, training, sum(len(item.row.ids) for item in items), quiet)
    return Prepared(trainer, {"rows": sum(len(item.ids) for item in items), "held_out": 0, "too_long": len(too_long)})


def _is_whole(start: Path) -> bool:
    return not (start / "adapter_config.json").exists()


def _load(config: ExperimentConfig, start: Path | None, *, lora: bool = True) -> tuple[Any, Any, str]:
    """Load base and adapter with the seed set: a new adapter's weights are drawn from it."""
    from transformers import set_seed

    dtype = _dtype(config.dtype)
    set_seed(config.seed)
    whole = start is not None and _is_whole(start)
    path, adapter = (start, None) if whole else (config.model, start)
    assert path is not None
    new = None if whole or not lora else config.lora
    model, tokenizer = load_trainable(path, adapter, new, dtype=dtype, quantization=config.quantization)
    check_ending(config.template, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels and masks go by length, so that no EOS is taken for padding
    return model, tokenizer, dtype


def _dtype(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "bfloat16" if torch.accelerator.is_available() else "float32"


def _arguments(
    kind: Any, config: ExperimentConfig, training: Training, dtype: str, own: dict[str, Any], *, evaluated: bool
) -> Any:
    """Make the trainer's arguments: how `kt` trains, below what the config says under the trainer's own names."""
    import torch

    folder = folder_of(config, training.name)
    plain: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "seed": config.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": not torch.accelerator.is_available(),
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 0.01,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # the other kind needs gradients at the inputs
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        **own,
    }
    said = trainer_settings(config, training.stage, training.baseline)
    if evaluated:  # every 10 % of steps, best by loss (method.md); a step that is evaluated must be saved too
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
        plain |= {"eval_strategy": "steps", "eval_steps": said.get("save_steps", 0.1), **best}
    if isinstance(said.get("deepspeed"), str):
        said["deepspeed"] = str(find_shipped("configs", said["deepspeed"]))
    with setting_errors(training.stage, f"; keys are those of {kind.__name__}"):
        return kind(**{**plain, **said})


def _set_display(trainer: Any, training: Training, tokens: int, quiet: bool) -> None:
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingDisplay(training.name, tokens, quiet))


def reference_file(
    config: ExperimentConfig, training: Training, items: Sequence[PackedItem], precision: tuple[str, str]
) -> Path:
    """Name the file of the reference's log-probabilities by all that they depend on; `precision`: weights', computing's."""
    assert training.start is not None
    start = folder_of(config, training.start)
    if loss_settings(config, training).reference == "base":
        weights = fingerprint(config.model)
    else:
        weights = fingerprint(start) if _is_whole(start) else combined_fingerprint(config.model, start)
    rows = [[item.row.ids, item.row.positions, item.lengths] for item in items]
    settings = [config.template, config.max_length, config.quantization, *precision]
    digest = hashlib.sha256(orjson.dumps([weights, settings, rows])).hexdigest()
    return Path(config.out) / "reference" / f"{digest[:16]}.json"
