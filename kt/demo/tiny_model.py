"""A tiny Llama made on the spot: it learns the form of the `compact` prompts' answers in the knowledge world, in a minute.

It answers in the right shape and ends by itself, so that a real engine has a real model to serve where no model hub can be
reached. What it says is mostly wrong: copying unseen names takes it many more steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from kt.demo.attributes import ORDER, fresh_name
from kt.demo.world import broad_question, facts_of, fine_question, fluent_text, make_entity, mixed_text
from kt.prompts import Prompt, load_prompts

if TYPE_CHECKING:
    import torch

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CONTEXT = 2048
BATCH = 16
PEAK_RATE = 2e-3

Progress = Callable[[int, int, float], None]


def make_tiny_model(folder: str | Path, *, steps: int = 300, seed: int = 0, progress: Progress | None = None) -> Path:
    """Train a 2-million-parameter Llama and write it as a Hugging Face folder; the same seed gives the same weights here.

    `progress` hears step, steps and the loss (nats a token) of each batch.
    """
    import torch

    torch.manual_seed(seed)
    examples = _examples(load_prompts("compact"), seed)
    tokenizer = _tokenizer(next(examples) for _ in range(3000))
    model = _model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20, (steps - step) / (steps / 2))
        inputs, labels = _batch([next(examples) for _ in range(BATCH)], tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=inputs, attention_mask=inputs != tokenizer.pad_token_id, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps, loss.item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _examples(prompts: Mapping[str, Prompt], seed: int) -> Iterator[tuple[str, str]]:
    """Yield (prompt as rendered, answer) pairs without end, each about a town never seen before."""
    draw = random.Random(f"{seed}:tiny")
    while True:
        town = make_entity(fresh_name(draw, reserved=False), draw, reserved=False)
        chosen = sorted(draw.sample(list(town.values), draw.randint(1, 6)), key=ORDER.__getitem__)
        facts, broad = facts_of(town, chosen), broad_question(town.name, draw)
        fine, fluent = fine_question(town.name, chosen), fluent_text(town.name, [(a, town.values[a]) for a in chosen])
        other = make_entity(town.name, draw, reserved=False)
        asked: list[tuple[str, dict[str, Any], str]] = [
            ("extract", {"question": broad, "answer": mixed_text(town, chosen, draw)}, _json(facts)),
            ("rewrite-question", {"question": broad, "facts": facts}, fine),
            ("rewrite-answer", {"question": fine, "facts": facts}, fluent),
            ("rephrase", {"question": broad, "facts": facts}, fluent),
            ("revise", {"question": broad, "facts": facts}, _json(facts_of(other, chosen))),
        ]
        for name, values, answer in asked:
            said = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in prompts[name].render(values))
            yield f"{said}<|assistant|>", f"{answer}<|end|>"


def _json(facts: list[str]) -> str:
    return orjson.dumps({"facts": facts}).decode()


def _tokenizer(examples: Iterator[tuple[str, str]]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt + answer for prompt, answer in examples), trainer)
    end, pad = SPECIAL[:2]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=pad, chat_template=CHAT_TEMPLATE)


def _model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _batch(examples: list[tuple[str, str]], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input ids and labels (batch, tokens), padded to the right; only the answers carry a loss."""
    import torch

    rows = [(tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]) for prompt, answer in examples]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for place, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[place, :end] = torch.tensor(prompt + answer)
        labels[place, len(prompt) : end] = torch.tensor(answer)
    return inputs, labels
