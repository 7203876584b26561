"""What an experiment's trainings will need of a GPU, before any of them runs: rows, tokens, memory, time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.items import read_items
from kt.train_config import AT_ONCE, ExperimentConfig, Training, baseline_of, needed_trainings, trainer_settings

ASSUMED_ITEMS = 4000
"""Items of a data file that is not here: those of the paper's Dolly and MedQuAD sets."""
TOKENS_A_WORD = 1.35
FLOPS = 150e12
"""Sustained bf16 rate of one H100-class card in training, in FLOP/s; a slower card takes longer in proportion."""

SHAPES = {7: (32, 4096, 32000, 11008), 8: (32, 4096, 128256, 14336), 13: (40, 5120, 32000, 13824)}
"""(layers, hidden, vocabulary, intermediate) of Llamas by their billions of parameters, where the model is not here."""


@dataclass(frozen=True)
class Shape:
    """A model's size: parameters, and the widths that activations depend on."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int
    intermediate: int


@dataclass(frozen=True)
class Need:
    """What one training is expected to need: rows (or pairs), tokens read in all, GB of GPU memory on a card, hours on one.

    Of a baseline's pairs only the most that there can be is known: every two samples of a question.
    """

    name: str
    rows: int
    tokens: int
    memory_gb: float
    hours: float


def plan(config: ExperimentConfig) -> list[Need]:
    """Estimate every training of an experiment.

    Memory: the base's weights, the adapter with its gradients and Adam's two moments, the activations of one micro-batch
    whose longest row has max_length tokens (all layers', or one layer's and the layer inputs with checkpointing), its
    logits. Time: 4 FLOP a base parameter and token (6 with checkpointing, or where all weights train), at FLOPS.
    """
    shape = shape_of(config.model)
    items, words = _items(config)
    question, answer = (round(TOKENS_A_WORD * count) for count in words)
    return [_need(config, training, shape, items, question + 40, answer) for training in needed_trainings(config)]


def shape_of(model: str) -> Shape:
    """Read a model's size from its config.json, or from its name (`Llama-2-7b-hf`) where it is not on this machine."""
    path = Path(model) / "config.json"
    if path.exists():
        return _shape_in(path)
    named = re.search(r"(\d+(?:\.\d+)?)b", Path(model).name.lower())
    if named is None:
        raise InputError(f"{model}: not on this machine, and its name does not tell its size: give a folder with config.json")
    billions = float(named[1])
    shape = _shape(*SHAPES[min(SHAPES, key=lambda size: abs(size - billions))])
    scale = billions * 1e9 / shape.parameters
    return Shape(
        billions * 1e9, shape.layers, round(shape.hidden * scale**0.5), shape.vocabulary, round(shape.intermediate * scale**0.5)
    )


def _shape_in(path: Path) -> Shape:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        found = found.get("text_config", found)
        numbers = [int(found[key]) for key in ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size")]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a model's config: {error}; copy or save the model again") from None
    except KeyError as error:
        raise InputError(f"{path}: has no {error}: not the config of a language model as transformers saves it") from None
    return _shape(*numbers, tied=bool(found.get("tie_word_embeddings")))


def _shape(layers: int, hidden: int, vocabulary: int, intermediate: int, *, tied: bool = False) -> Shape:
    parameters = layers * (4 * hidden**2 + 3 * hidden * intermediate) + vocabulary * hidden * (1 if tied else 2)
    return Shape(parameters, layers, hidden, vocabulary, intermediate)


def absent(config: ExperimentConfig) -> list[str]:
    """Return the data files that are not here: without all of them, ASSUMED_ITEMS items of Dolly's length are planned for."""
    return [] if config.world is not None else [path for path in config.data if not Path(path).exists()]


def _items(config: ExperimentConfig) -> tuple[int, tuple[float, float]]:
    """Return the number of items and the mean words of question and answer; assumptions where a file is not here."""
    if config.world is not None:  # of each seed; its questions and answers are short
        return config.world.train, (4, 27)
    if absent(config):
        return config.limit or ASSUMED_ITEMS, (12, 90)
    found = [one.item for one in read_items(config.data, config.limit) if one.item is not None]
    count = max(1, len(found))
    words = [sum(len(str(item[key]).split()) for item in found) / count for key in ("question", "answer")]
    return len(found), (words[0], words[1])


def _need(config: ExperimentConfig, training: Training, shape: Shape, items: int, prompt: int, answer: int) -> Need:
    settings = trainer_settings(config, training.stage, training.baseline)
    whole, checkpointed = config.lora is None, bool(settings.get("gradient_checkpointing"))
    # A KC row holds the prompt once, the chosen answer once, and one rejected answer a pair.
    shared = _shared_rows(config, training)
    pairs = sum(shared)
    rows = {"sft": items, "ka": 2 * items, "kc": pairs * items}[training.stage]
    lines = len(shared) * items if training.stage == "kc" else rows
    per_row = min(config.max_length, prompt + answer) if training.stage != "kc" else prompt + answer * (1 + pairs / len(shared))
    tokens = lines * per_row * settings["num_train_epochs"]
    widest = prompt + answer * (1 + max(shared)) if training.stage == "kc" else per_row
    whole_items = math.ceil(settings["per_device_train_batch_size"] / (max(shared) if training.stage == "kc" else 1))
    longest = widest * max(1.0, config.max_length / (prompt + answer))
    memory = _memory(config, shape, whole_items * longest, whole=whole, checkpointed=checkpointed)
    flops = (6 if whole or checkpointed else 4) * shape.parameters * tokens
    return Need(training.name, rows, round(tokens), round(memory / 1e9, 1), round(flops / FLOPS / 3600, 2))


def _shared_rows(config: ExperimentConfig, training: Training) -> list[int]:
    """Return how many pairs each row of an item holds: the aspects; or, of n ranked samples, those below each, at most."""
    if training.baseline is None:
        return [len(training.aspects)]
    below = range(1, baseline_of(config, training.baseline).samples)
    return [min(AT_ONCE, count - first) for count in below for first in range(0, count, AT_ONCE)]


def _memory(config: ExperimentConfig, shape: Shape, tokens: float, *, whole: bool, checkpointed: bool) -> float:
    """Return bytes: weights, what trains, activations, logits."""
    width = 4 if config.dtype == "float32" else 2
    weights = shape.parameters * (0.6 if config.quantization == "nf4" else width)
    trained = shape.parameters if whole else _adapter_parameters(config.lora or {}, shape)
    one_layer = tokens * (10 * shape.hidden + 3 * shape.intermediate) * width
    layers = tokens * shape.hidden * width * shape.layers + one_layer if checkpointed else one_layer * shape.layers
    return weights + trained * 16 + layers + tokens * shape.vocabulary * 6 + 1e9


def _adapter_parameters(lora: dict[str, Any], shape: Shape) -> float:
    targets: Sequence[str] | str = lora.get("target_modules", ["q_proj", "v_proj"])
    count = 7 if isinstance(targets, str) else len(targets)
    return shape.layers * count * lora.get("r", 8) * 2 * shape.hidden
