"""Answers of a local model to tokenised prompts, a batch at a time: transformers' own `generate`, made repeatable."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kt.errors import EngineError
from kt.models import LocalModel, is_out_of_memory


class Text(NamedTuple):
    """What the model said: text without special tokens, how many tokens, and "stop" (it ended) or "length" (it was cut)."""

    text: str
    tokens: int
    finish_reason: str


def decode(
    local: LocalModel,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[str],
    params: Mapping[str, Any],
    stopping: threading.Event | None = None,
) -> list[Text]:
    """Continue every prompt until the model ends its answer or `max_tokens` are written.

    `params`: max_tokens; temperature, 0 for the likeliest token at each step; top_p. `draws` seed the sampling, one a
    prompt. Prompts are padded on the left and the padding is masked, so that an answer depends on what stands beside it in
    the batch by nothing but rounding: where two tokens are as likely but for the last digits, another may be chosen
    (tests/test_generation.py). Settings that a model folder brings along (repetition penalty, ...) do not count.
    `stopping`, once set, ends the batch early; its answers are then worth nothing. Raises EngineError for lack of memory.
    """
    try:
        return _decode(local, prompts, draws, params, stopping or threading.Event())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if len(prompts) == 1:
        raise EngineError(
            f"not enough memory on {local.device} to answer {len(prompts[0])} tokens with {local.name}: use dtype bfloat16,"
            " a smaller model or another device"
        )
    half = len(prompts) // 2  # outside the handler, which would keep the failed batch alive
    first = decode(local, prompts[:half], draws[:half], params, stopping)
    return first + decode(local, prompts[half:], draws[half:], params, stopping)


@torch.inference_mode()
def _decode(
    local: LocalModel, prompts: Sequence[Sequence[int]], draws: Sequence[str], params: Mapping[str, Any], stop: threading.Event
) -> list[Text]:
    ends = end_tokens(local)
    width = max(map(len, prompts))
    padding = ends[0] if ends else 0
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=local.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=local.device)
    model: Any = local.model
    # generate() fills what is unset from here: the folder's sampling settings must not leak in.
    model.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=padding, use_cache=True)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(max_new_tokens=params["max_tokens"], do_sample=False),
        logits_processor=_sampling(params, draws),
        stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
    )
    return [_text(local, row, ends) for row in found[:, width:].tolist()]


def end_tokens(local: LocalModel) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's EOS and those that the model's own settings name."""
    named = getattr(getattr(local.model, "generation_config", None), "eos_token_id", None)
    every = [local.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return [token for token in dict.fromkeys(every) if token is not None]


def _text(local: LocalModel, row: list[int], ends: Sequence[int]) -> Text:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    written = row if end is None else row[:end]
    text = str(local.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    text = text.rstrip("\ufffd")  # half a character at the end, which vLLM leaves out too
    return Text(text, len(written) + (end is not None), "length" if end is None else "stop")


class _Stopped(StoppingCriteria):
    """Ends a batch that nobody waits for any more."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device, dtype=torch.bool)


def _sampling(params: Mapping[str, Any], draws: Sequence[str]) -> LogitsProcessorList:
    """Return what turns the choice of the likeliest token into a draw; nothing at temperature 0."""
    processors = LogitsProcessorList()
    if params.get("temperature", 0):
        processors.append(TemperatureLogitsWarper(float(params["temperature"])))
        if params.get("top_p", 1) < 1:
            processors.append(TopPLogitsWarper(float(params["top_p"])))
        processors.append(_Draw(draws))
    return processors


class _Draw(LogitsProcessor):
    """Adds Gumbel noise of each row's own generator: the likeliest token is then a draw from the softmax.

    torch.multinomial would draw from one generator for the whole batch: an answer would depend on its neighbours. Drawn
    on the CPU, so that every device sees the same noise.
    """

    def __init__(self, draws: Sequence[str]) -> None:
        self.generators = [torch.Generator().manual_seed(_seed(draw)) for draw in draws]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        exponential = [torch.empty(scores.shape[1]).exponential_(generator=each) for each in self.generators]
        return scores.float() - torch.stack(exponential).log().to(scores.device)


def _seed(draw: str) -> int:
    return int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big") >> 1
