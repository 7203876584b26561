"""Three-aspect pairs of real answers by plain rules, and the random Llama and adapter that bench/train.py trains."""

import json
import random
import re
from pathlib import Path

VOCABULARY = 12_000


def make_pairs(data: Path, limit: int, seed: int = 42) -> list[dict]:
    """Make three pairs of every answer with two sentences or more: half of them, words swapped in each, another order."""
    pairs: list[dict] = []
    for number, row in enumerate(json.loads(data.read_text())):
        facts = re.split(r"(?<=[.!?])\s+", row["output"].strip())
        if len(set(facts)) < 2:
            continue
        draw = random.Random(f"{seed}:{number}")
        worse = {"completeness": _half(facts, draw), "factuality": _swapped(facts, draw), "logicality": _shuffled(facts, draw)}
        common = {"item": f"{data.stem}-{number}", "prompt": row["instruction"], "chosen": " ".join(facts)}
        for aspect, rejected in worse.items():
            pairs.append({"id": f"{common['item']}/{aspect}", "aspect": aspect, **common, "rejected": " ".join(rejected)})
        if len(pairs) == 3 * limit:
            break
    return pairs


def _half(facts: list[str], draw: random.Random) -> list[str]:
    kept = sorted(draw.sample(range(len(facts)), len(facts) - len(facts) // 2))
    return [facts[index] for index in kept]


def _swapped(facts: list[str], draw: random.Random) -> list[str]:
    return [" ".join(draw.sample(words, len(words))) for words in (fact.split() for fact in facts)]


def _shuffled(facts: list[str], draw: random.Random) -> list[str]:
    order = list(facts)
    while order == facts:
        draw.shuffle(order)
    return order


def make_model(folder: Path, texts: list[str]) -> None:
    """Save a random Llama of some 21M weights, and a byte-level BPE trained on the texts."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer.get_vocab()), hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=8192, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=False, initializer_range=0.05,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def make_adapter(model: Path, folder: Path) -> None:
    """Save a fresh LoRA on all linear layers; it changes nothing yet, so base and `ka` model are one reference for all."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
