"""How hard each fact is for a model: perplexity under a local or a served model, and the choice of the hardest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

from kt.errors import BackendError, InputError
from kt.models import LocalModel
from kt.packing import EncodedFact, Row, common_prefix, encode_facts, pack, pack_apart

# On a CPU a batch should stay in its caches (measured: 4,096 tokens take 1.4x the time of 1,024); a GPU wants work.
BATCH_TOKENS_CPU = 1024
BATCH_TOKENS = 16_384
SHARED = "shared prefix"
NOTHING = "the fact has no token to score: it is empty"
NO_PROMPT_LOGPROBS = (
    "the server's answer has no prompt_logprobs, which only vLLM's /v1/completions gives: score with a local model"
)


@dataclass(frozen=True)
class TokenScore:
    """The summed log-probability (natural) of a continuation's tokens; `error` says why there is none."""

    logprob_sum: float
    tokens: int
    error: str | None = None


def perplexity(score: TokenScore) -> float:
    """Turn a score into perplexity, exp of the mean negative log-likelihood; InputError where there is no score."""
    if score.error is not None:
        raise InputError(score.error)
    try:
        return math.exp(-score.logprob_sum / score.tokens)
    except OverflowError:
        return math.inf


def choose_difficult(perplexities: Sequence[float], share: float = 0.5) -> list[int]:
    """Give the indices, in order, of the share of facts with the highest perplexity, rounded up.

    The earlier of two equal facts goes first. Raises InputError for a share outside 0 to 1 and for what is no number.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share of difficult facts is {share}: give a number from 0 to 1")
    for index, value in enumerate(perplexities):
        if not math.isfinite(value):
            raise InputError(f"perplexity of fact {index + 1} is {value}: score again, with dtype float32")
    # The share as written: 0.1 of 30 is 3, which floating point would round up to 4.
    count = math.ceil(Fraction(str(share)) * len(perplexities))
    hardest = sorted(range(len(perplexities)), key=lambda index: (-perplexities[index], index))
    return sorted(hardest[:count])


def score_contexts(
    local: LocalModel,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    batch_tokens: int | None = None,
) -> list[list[TokenScore]]:
    """Score every continuation after its context: for each (context, continuations) a list of scores in that order.

    A context is computed once and shared by its continuations where the model allows it (`scoring_path` says).
    What cannot be scored, being empty or too long for the model, has a score with an error and disturbs no other.
    `batch_tokens` bounds the tokens of a batch, padding included; it changes speed and memory, not numbers.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS_CPU if local.device.type == "cpu" else BATCH_TOKENS
    encoded = [encode_facts(local.tokenizer, context, facts) for context, facts in questions]
    facts = [fact for group in encoded for fact in group]
    scores = [_fault(fact, local) for fact in facts]
    ends = list(accumulate(len(group) for group in encoded))
    spans = [range(end - len(group), end) for end, group in zip(ends, encoded, strict=True)]
    _score_groups(local, facts, [[i for i in span if scores[i] is None] for span in spans], scores, batch_tokens)
    return [[score for i in span if (score := scores[i]) is not None] for span in spans]


def scoring_path(local: LocalModel) -> str:
    """Say how facts are scored on this model: `shared prefix`, or `separate rows` and why."""
    if not local.scoring_path:
        from kt.loglikelihood import sharing_limit, sharing_refused

        refused, window = sharing_refused(local), sharing_limit(local)
        limited = f", separate rows beyond the model's window of {window} tokens" if window else ""
        local.scoring_path = f"separate rows: {refused}" if refused else f"{SHARED}{limited}"
    return local.scoring_path


def score_from_prompt_logprobs(prefix_response: dict[str, Any] | None, full_response: dict[str, Any]) -> TokenScore:
    """Score a continuation from two answers of vLLM's `/v1/completions`, to the context and to context + continuation.

    Ask both with `prompt_logprobs: 0` (the prompt's own tokens, no alternatives) and `max_tokens: 1`; with alternatives,
    `return_token_ids: true` is needed as well to tell which is the prompt's. Without a context (None), all tokens after
    the first count. Raises BackendError for an answer that has no such log-probabilities.
    """
    whole = _prompt_tokens(full_response)
    given = whole[:1] if prefix_response is None else _prompt_tokens(prefix_response)
    start = common_prefix([[token for token, _ in tokens] for tokens in (given, whole)])
    logprobs = [logprob for _, logprob in whole[start:] if logprob is not None]
    if start + len(logprobs) < len(whole):
        return TokenScore(0.0, 0, "the continuation's first token has no context to be predicted from")
    return _score(logprobs)


def _fault(fact: EncodedFact, local: LocalModel) -> TokenScore | None:
    if not fact.tokens:
        return TokenScore(0.0, 0, NOTHING)
    limit, fed = local.context_length, len(fact.ids) - 1
    if limit is not None and fed > limit:
        return TokenScore(0.0, fact.tokens, f"context and fact are {fed} tokens, {local.name} takes {limit}: shorten them")
    return None


def _score_groups(
    local: LocalModel,
    facts: Sequence[EncodedFact],
    groups: Sequence[Sequence[int]],
    scores: list[TokenScore | None],
    batch_tokens: int,
) -> None:
    """Fill in the scores of all facts that the groups, one a question, name."""
    from kt.loglikelihood import score_rows, sharing_limit

    window = sharing_limit(local) or batch_tokens
    # The whole row, and not only its longest branch, stays within what the model was built for.
    row_tokens = min(batch_tokens, window, local.context_length or batch_tokens)
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for group in groups:
        fits = max((len(facts[index].ids) for index in group), default=0) <= window
        shared = fits and scoring_path(local).startswith(SHARED)
        rows[shared] += pack(facts, group, row_tokens) if shared else pack_apart(facts, group)
    for shared, some in rows.items():
        for row, logprobs in zip(some, score_rows(local, some, batch_tokens, shared=shared), strict=True):
            if shared and not math.isfinite(math.fsum(logprobs)):
                # A masked NaN is still NaN to its neighbours: apart, it is only its own. The dict's order is the order.
                rows[False] += pack_apart(facts, row.facts)
                continue
            values = iter(logprobs)
            for index in row.facts:
                scores[index] = _score([next(values) for _ in range(facts[index].tokens)])


def _score(logprobs: Sequence[float]) -> TokenScore:
    total = math.fsum(logprobs)
    if not logprobs:
        return TokenScore(0.0, 0, NOTHING)
    if not math.isfinite(total):
        return TokenScore(0.0, len(logprobs), "the model gives no finite probability: score with dtype float32")
    return TokenScore(total, len(logprobs))


def _prompt_tokens(response: dict[str, Any]) -> list[tuple[int, float | None]]:
    """Read the prompt's (token id, log-probability) out of an answer; the first token has neither, as -1 and None."""
    try:
        choice = response["choices"][0]
        entries = choice["prompt_logprobs"] or []
    except (KeyError, IndexError, TypeError):
        raise BackendError(NO_PROMPT_LOGPROBS) from None
    if not entries:
        raise BackendError(NO_PROMPT_LOGPROBS)
    ids = choice.get("prompt_token_ids") or [_only_token(entry) for entry in entries]
    return [(token, entry[str(token)]["logprob"] if entry else None) for token, entry in zip(ids, entries, strict=True)]


def _only_token(entry: dict[str, Any] | None) -> int:
    if entry is None:
        return -1
    if len(entry) != 1:
        raise BackendError(
            "the server gave several tokens for one place of the prompt: ask with prompt_logprobs 0, "
            "or with return_token_ids true"
        )
    return int(next(iter(entry)))
