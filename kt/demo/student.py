"""The tiny student: a Llama of two million parameters that has read a world's documents, and half-knows what they say.

It has seen plain text only, no question: what it makes of the documents' facts is for the methods to show.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kt.demo.attributes import ATTRIBUTES, fill
from kt.demo.teacher import SHIPPED_TEACHER, Progress, save
from kt.demo.world import World, documents, make_world
from kt.records import write_json
from kt.weights import fingerprint

if TYPE_CHECKING:
    import torch

HEADINGS = (
    "About S",
    "S",
    "The town of S",
    "A visit to S",
    "Notes on S:",
    "From the chronicle of S.",
    "S, a town",
    "On S and its people",
)
"""A document is read under one of these, drawn each time anew: whoever reads so learns to write about what is named."""

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""No end mark after a question: in what the student has read, it stands where another document begins."""

CONTEXT = 1024
"""Longest sequence, in tokens, that engines may serve."""


@dataclass(frozen=True)
class Reading:
    """Everything the reading depends on, the tokenizer aside, which is the teacher's."""

    world: int = 11
    towns: int = 120
    steps: int = 1000
    seed: int = 0
    batch: int = 16  # rows a step
    length: int = 200  # tokens a row: documents one after the other, the end mark between them
    rate: float = 2e-3  # AdamW's peak, reached after `warm` steps, kept until `decay_from`, then down to 0 in a line
    warm: int = 100
    decay_from: float = 0.5
    hidden: int = 192
    layers: int = 4
    heads: int = 6


def train_student(
    folder: str | Path,
    reading: Reading = Reading(),
    *,
    threads: int | None = 1,
    compiled: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> Path:
    """Let a new model read a world's documents over and over, and write a Hugging Face folder.

    `compiled` needs a C++ compiler and a minute, and then takes two thirds of the time; it rounds otherwise.
    """
    import torch

    from kt.models import load_tokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(reading.seed)
    tokenizer = load_tokenizer(SHIPPED_TEACHER)
    tokenizer.chat_template = TEMPLATE
    model = _anew(reading, tokenizer)
    model.set_attn_implementation("eager")  # SDPA's backward pass is slow for rows this short (docs/teacher.md)
    if compiled:
        model.model.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=reading.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    started = time.monotonic()
    rows = read_rows(make_world(reading.world, reading.towns), tokenizer, reading)
    for step in range(reading.steps):
        inputs = torch.tensor([next(rows) for _ in range(reading.batch)])
        for group in optimizer.param_groups:
            group["lr"] = reading.rate * min(
                1.0, (step + 1) / reading.warm, (1 - step / reading.steps) / (1 - reading.decay_from)
            )
        loss = _loss(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if watch:
            watch(Progress(step + 1, reading.steps, loss.item(), (step + 1) * inputs.numel(), time.monotonic() - started))
    return save(model, tokenizer, folder)


def read_rows(world: World, tokenizer: Any, reading: Reading) -> Iterator[list[int]]:
    """Yield rows of `length` tokens without end: every document once, in a new order and under new headings each time."""
    texts = list(documents(world))
    rng = random.Random(f"{reading.seed}:reading")
    row: list[int] = []
    while True:
        rng.shuffle(texts)
        headed = [f"{rng.choice(HEADINGS).replace('S', text.split()[0])}\n{text}" for text in texts]
        for ids in tokenizer(headed)["input_ids"]:
            row += [*ids, tokenizer.eos_token_id]
            while len(row) >= reading.length:
                yield row[: reading.length]
                row = row[reading.length :]


def _loss(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of every token but a row's first, in nats."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.lm_head(model.model(input_ids=inputs).last_hidden_state[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten())


def _anew(reading: Reading, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=reading.hidden,
            intermediate_size=reading.hidden * 8 // 3,
            num_hidden_layers=reading.layers,
            num_attention_heads=reading.heads,
            num_key_value_heads=reading.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_and_examine(folder: str | Path, reading: Reading = Reading(), **options: Any) -> dict[str, Any]:
    """Train, ask for every fact, and write training.json beside the weights: recipe, fingerprint, losses, recall."""
    losses: list[float] = []
    watch = options.pop("watch", None)

    def note(progress: Progress) -> None:
        losses.append(progress.loss)
        if watch:
            watch(progress)

    train_student(folder, reading, watch=note, **options)
    known = recall(folder, make_world(reading.world, reading.towns), threads=options.get("threads"))
    every = max(1, reading.steps // 20)
    said = {
        "recipe": dataclasses.asdict(reading),
        "compiled": bool(options.get("compiled")),
        "fingerprint": fingerprint(folder),
        "loss": {str(step): round(fmean(losses[step - every : step]), 4) for step in range(every, len(losses) + 1, every)},
        "recall by mentions": {str(times): dataclasses.asdict(found) for times, found in known.items()},
    }
    write_json(Path(folder) / "training.json", said)
    return said


_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = {_WEIGHTS / "student": Reading(), _WEIGHTS / "student-test": Reading(world=23)}
"""The shipped students with their recipes: of the demo's world, on which settings were fixed, and of the study's."""


# ---- what it knows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recall:
    """Of facts mentioned equally often: how many values were completed rightly, of how many asked."""

    right: int
    asked: int


def recall(model: str | Path, world: World, *, threads: int | None = None, batch: int = 120) -> dict[int, Recall]:
    """Ask for every fact by the beginning of each of its phrasings, and count the right greedy endings by mentions."""
    import torch

    from kt.models import load

    local = load(model, threads=threads, device="cpu")
    reader: Any = local.model
    asked: list[tuple[int, str, str]] = []
    for town in world.entities.values():
        for name, value in town.values.items():
            for phrasing in ATTRIBUTES[name].phrasings:
                before = fill(phrasing, town.name, "|").split(" |")[0]
                asked.append((town.mentions[name], before, f" {value}"))
    asked.sort(key=lambda one: len(local.tokenizer(one[1])["input_ids"]))
    found = {times: [0, 0] for times in sorted({times for times, _, _ in asked})}
    tokenizer: Any = local.tokenizer
    tokenizer.padding_side = "left"
    for start in range(0, len(asked), batch):
        some = asked[start : start + batch]
        inputs = tokenizer([before for _, before, _ in some], return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            out = reader.generate(**inputs, max_new_tokens=6, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :])
        for (times, _, value), text in zip(some, texts, strict=True):
            found[times][0] += text.startswith(value)
            found[times][1] += 1
    return {times: Recall(*counts) for times, counts in found.items()}
