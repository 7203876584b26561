"""Tiny Llamas with random weights, made on the spot: real files for real engines, nothing fetched."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return sentences of our own for a tokenizer to be made of."""
    draw = random.Random(seed)
    people = ["The keeper", "A sailor", "The old town", "Her brother", "The river", "A lighthouse", "This engine"]
    verbs = ["finds", "paints", "remembers", "crosses", "was built near", "measures", "keeps"]
    things = ["the northern harbour", "twelve small boats", "a long letter", "the bridge of 1874", "three questions"]
    return [f"{draw.choice(people)} {draw.choice(verbs)} {draw.choice(things)} {draw.randint(1, 999)}." for _ in range(count)]


def make_llama(
    folder: Path, *, hidden: int = 64, layers: int = 2, context: int = 4096, vocab: int = 768, seed: int = 0
) -> Path:
    """Make a random Llama folder with tokenizer and chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences(2000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,  # vLLM's CPU attention wants heads of 32 at least
        num_key_value_heads=hidden // 32,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    _let_answers_end(model, fast)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def _let_answers_end(model: Any, tokenizer: Any) -> None:
    """Make the tokens that end a text, or a JSON string, likely: random weights would ramble to the token limit."""
    import torch

    ends = [i for word, i in tokenizer.get_vocab().items() if '"' in word]
    with torch.no_grad():
        ids = torch.randint(len(SPECIAL), len(tokenizer), (8, 64), generator=torch.Generator().manual_seed(1))
        hidden = model.model(ids).last_hidden_state.reshape(-1, model.config.hidden_size)
        mean = hidden.mean(0)
        others = (hidden @ model.lm_head.weight.T).std()
        for token, strength in [(tokenizer.eos_token_id, 1.7), *((i, 1.3) for i in ends)]:
            model.lm_head.weight[token] += mean * strength * others / mean.dot(mean)
