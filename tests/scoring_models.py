"""Tiny random models of several architectures, with a byte-level tokenizer, saved as folders for tests of scoring."""

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "Lichens grow on bark and on stone, in cold deserts and in warm rain forests.",
    "A lichen is a fungus that lives with an alga; the alga makes sugar from light.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: What is it? ### Response: The answer is a short sentence about 1984 and 3.14.",
]
VOCABULARY = 400
CONTEXT = 128
# A few rows more than tokens: transformers adds special tokens of its own for some architectures.
ALIKE = {"vocab_size": VOCABULARY + 16, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    **ALIKE,
}


def make_tokenizer(*, add_bos=True):
    """Train a byte-level BPE on a few sentences; with `add_bos` it writes <s> before every text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if add_bos:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
            ]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **ALIKE),
    "gemma2": lambda: transformers.Gemma2Config(
        **{**LLAMA_LIKE, "sliding_window": 24, "head_dim": 8, "query_pre_attn_scalar": 8}, final_logit_softcapping=5.0
    ),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=24),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ALIKE),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=32,
        init_std=0.3,
        **ALIKE,
    ),
    "mamba": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **ALIKE),
}


def save_model(folder, kind="llama", *, seed=0, add_bos=True, **changes):
    """Save a random model with its tokenizer and return the folder."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    for key, value in changes.items():
        setattr(config, key, value)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(add_bos=add_bos).save_pretrained(folder)
    return folder


def save_adapter(folder, base, *, targets=("q_proj", "v_proj"), seed=1):
    """Save a random LoRA adapter, big enough to move every number, for the model in folder `base`."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder
