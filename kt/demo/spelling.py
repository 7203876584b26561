"""The tiny models' tokenizer: byte-level BPE in which every name is two tokens.

Written as GPT-2's byte-level BPE, which transformers, vLLM and llama.cpp all read. The first merges spell the syllables of
names, the others are learnt from the world's own words. A name or number in a sentence begins with a token that holds the
space before it: a space of its own would stand between a name and the word that tells which name to copy, and copying then
takes a model several times as long to learn. Digits never merge with each other.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from kt.demo.attributes import ATTRIBUTES, FIRST, SECOND

SPECIAL = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Pair = tuple[str, str]


def make_tokenizer(texts: Iterable[str], size: int = 1024) -> Any:
    """Make the tokenizer: syllables first, then up to `size` tokens from the words of `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    syllables = syllable_merges()
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = dict.fromkeys([*SPECIAL, *alphabet, *("".join(pair) for pair in syllables)])
    merges = [*syllables, *_learn(words, syllables, size - len(known))]
    known.update(dict.fromkeys("".join(pair) for pair in merges))
    vocabulary = {token: number for number, token in enumerate(known)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    end, pad = SPECIAL[:2]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=pad, chat_template=CHAT_TEMPLATE)


def syllable_merges() -> list[Pair]:
    """Return the merges that spell every syllable: consonant and vowel, then the last consonant, then a space before."""
    syllables = [*FIRST, *(s for s in SECOND if len(s) == 3)]
    heads = dict.fromkeys((s[0], s[1]) for s in [*FIRST, *SECOND])
    spaced = [("Ġ", start) for start in (*FIRST, *"0123456789")]
    return [*heads, *((s[:2], s[2]) for s in syllables), *spaced]


def _learn(words: Counter[str], before: list[Pair], room: int) -> list[Pair]:
    """Learn up to `room` merges of new tokens from words that are no names; ties go to the pair first in the alphabet."""
    left = {tuple(_apply(list(word), before)): count for word, count in words.items() if not _is_kept_apart(word)}
    learnt: list[Pair] = []
    while len(learnt) < room:
        pairs: Counter[Pair] = Counter()
        for symbols, count in left.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        left = {tuple(_merge(list(symbols), best)): count for symbols, count in left.items()}
    return learnt


def _is_kept_apart(word: str) -> bool:
    """Say whether a word (a leading space as "Ġ") is a name or a number."""
    bare = word.removeprefix("Ġ")
    return bare.isdigit() or (bare[:3] in FIRST and bare[3:] in SECOND)


def _apply(symbols: list[str], merges: list[Pair]) -> list[str]:
    for pair in merges:
        symbols = _merge(symbols, pair)
    return symbols


def _merge(symbols: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def closed_values(times: int, rng: random.Random) -> str:
    """Return every value of the closed lists `times` over, in random order: a text to learn words from."""
    words = [value for a in ATTRIBUTES.values() if isinstance(a.values, tuple) for value in a.values * times]
    rng.shuffle(words)
    return " ".join(words)
