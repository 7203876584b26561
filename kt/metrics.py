"""METEOR and BERTScore of an answer against the gold answer, by the libraries that define them: nltk and bert-score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kt.errors import InputError
from kt.wordnet import open_wordnet

Metric = Callable[[Sequence[str], Sequence[str]], Iterator[dict[str, float]]]
"""Scores answers against gold answers, in order; the names of the scores are those in the results."""

DIGITS = 9
BLOCK = 64
"""bert-score holds every embedding it was given at once: 4,000 answers of roberta-large would take 16 GB."""

PAPER_LAYER = 17
"""Of roberta-large (method.md), the layer that agrees best with people."""


# ---- METEOR ----------------------------------------------------------------------------------------------------------


def meteor(with_wordnet: bool) -> Metric:
    """Return METEOR (alpha 0.9, beta 3, gamma 0.5; lower case, Porter stems), with WordNet's synonyms or without.

    Without, its name is `meteor-no-wordnet`. Words are nltk's wordpunct tokens, which need no data files.
    """
    try:
        from nltk.stem.porter import PorterStemmer
        from nltk.tokenize import wordpunct_tokenize
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise InputError("METEOR needs nltk: pip install 'kt[eval]'") from error
    synonyms = open_wordnet() if with_wordnet else NoWordNet()
    name = "meteor" if with_wordnet else "meteor-no-wordnet"
    stemmer = PorterStemmer()

    def score(answers: Sequence[str], golds: Sequence[str]) -> Iterator[dict[str, float]]:
        for answer, gold in zip(answers, golds, strict=True):
            words, wanted = wordpunct_tokenize(answer), wordpunct_tokenize(gold)
            found = meteor_score(
                [wanted], words, preprocess=str.lower, stemmer=stemmer, wordnet=synonyms, alpha=0.9, beta=3.0, gamma=0.5
            )
            yield {name: round(found, DIGITS)}

    return score


class NoWordNet:
    """Knows no synonyms: what nltk's METEOR asks instead of a WordNet."""

    def synsets(self, _: str) -> list[Any]:
        """Return none."""
        return []


# ---- BERTScore -------------------------------------------------------------------------------------------------------


_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")


class Encoder(NamedTuple):
    """A local encoder for BERTScore: its folder, the layer whose vectors count, and how many tokens it takes."""

    folder: Path
    layer: int
    longest: int


def read_encoder(folder: str | Path, layer: int | None) -> Encoder:
    """Look over an encoder's folder; layer 17 is the default of a roberta-large, any other needs its layer named."""
    path = Path(folder)
    try:
        config = json.loads((path / "config.json").read_text())
        kind, layers = config["model_type"], int(config["num_hidden_layers"])
        positions = int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--encoder {path}: no encoder's folder (config.json with model_type, num_hidden_layers and"
            " max_position_embeddings): BERTScore wants a local one, such as roberta-large's"
        ) from error
    if ("t5" in str(path) and "t5" not in kind) or str(path).startswith("scibert"):
        raise InputError(f"--encoder {path}: bert-score takes a path with t5 in it for a T5 model; rename the folder")
    if not any(path.glob("*.safetensors")) or not any((path / name).exists() for name in _TOKENIZERS):
        raise InputError(
            f"--encoder {path}: lacks weights as *.safetensors (pickled ones are not loaded) or a tokenizer"
            f" ({', '.join(_TOKENIZERS)})"
        )
    if layer is None and (kind, layers) != ("roberta", 24):
        raise InputError(f"--encoder {path}: a {kind} of {layers} layers; say which of them counts with --encoder-layer N")
    layer = PAPER_LAYER if layer is None else layer
    if not 1 <= layer <= layers:
        raise InputError(f"--encoder-layer {layer}: {path} has layers 1 to {layers}")
    begins_after_padding = kind in ("roberta", "xlm-roberta", "camembert")
    return Encoder(path, layer, positions - (int(config.get("pad_token_id") or 0) + 1 if begins_after_padding else 0))


def bertscore(encoder: Encoder) -> Metric:
    """Return BERTScore (no idf, no rescaling): precision, recall and F1; an empty text scores 0, as bert-score has it.

    Under transformers 5 bert-score 0.3.13 cannot put a space before a RoBERTa's first word, as it does under older ones: its
    figures are then those that it calls `fast-tokenizer`. The manifest names both versions.
    """
    scorer = _scorer(encoder)

    def score(answers: Sequence[str], golds: Sequence[str]) -> Iterator[dict[str, float]]:
        pairs = zip(answers, golds, strict=True)
        while block := list(islice(pairs, BLOCK)):
            yield from _of_block(scorer, block)

    return score


def _of_block(scorer: Any, block: Iterable[tuple[str, str]]) -> Iterator[dict[str, float]]:
    block = list(block)
    full = [number for number, (answer, gold) in enumerate(block) if answer.strip() and gold.strip()]
    found: dict[int, tuple[float, float, float]] = {}
    if full:
        columns = scorer.score([block[i][0] for i in full], [block[i][1] for i in full])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        found = dict(zip(full, rows, strict=True))
    for number in range(len(block)):
        precision, recall, f1 = (round(value, DIGITS) for value in found.get(number, (0.0, 0.0, 0.0)))
        yield {"bertscore-precision": precision, "bertscore-recall": recall, "bertscore-f1": f1}


def _scorer(encoder: Encoder) -> Any:
    """Load the encoder into bert-score's scorer, with its longest text where the tokenizer's files do not say it."""
    try:
        from bert_score import BERTScorer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise InputError("BERTScore needs bert-score: pip install 'kt[eval]'") from error
    disable_progress_bar()
    scorer = BERTScorer(model_type=str(encoder.folder), num_layers=encoder.layer, idf=False, rescale_with_baseline=False)
    tokenizer = scorer._tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.longest)
    return scorer
