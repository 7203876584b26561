"""The steps that give every fact its perplexity, through the cache: by a local model, or by a served one (vLLM)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from kt.errors import InputError
from kt.local_backend import LocalBackend
from kt.pipeline import Reject, Step
from kt.records import Record
from kt.request import Completion, Request
from kt.template import render_prompt
from kt.wire import Answer

if TYPE_CHECKING:
    from kt.models import LocalModel

BATCH_QUESTIONS = 256
"""Questions handed to the model together, to be sorted by length into batches."""


def score(context: str, template: str) -> Step:
    """Facts → {"id", "perplexities"} under a local model: one request a question, its prefix computed once.

    `context` "question" conditions each fact on the question in the training prompt; "none" scores the fact alone.
    """

    def requests(record: Record) -> list[Request]:
        body: Record = {"continuations": record["facts"]}
        if context == "none":
            body["context"] = ""
        elif template == "chat":  # the scorer's own tokenizer renders it; its fingerprint is in the key
            body |= {"template": "chat", "question": record["question"]}
        else:
            body["context"] = render_prompt(record["question"], template)
        return [Request("loglikelihood", body, prompt="score")]

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        return [_perplexities(record, orjson.loads(completions[0].text))]

    return Step("score", requests, parse, {"context": context, "template": template}, attempts=1)


def score_served(context: str, template: str) -> Step:
    """Facts → {"id", "perplexities"} through a vLLM server's `prompt_logprobs`: one call for the prefix, one a fact."""
    if template == "chat":
        raise InputError("difficulty template `chat` needs the model's tokenizer: give --scorer PATH, or template alpaca")
    params = {"max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}

    def requests(record: Record) -> list[Request]:
        prefix = render_prompt(record["question"], template) if context == "question" else ""
        texts = ([prefix] if prefix else []) + [prefix + fact for fact in record["facts"]]
        return [Request("completions", {"prompt": text, **params}, prompt="score") for text in texts]

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        from kt.perplexity import score_from_prompt_logprobs

        said = [{"choices": [{"prompt_logprobs": orjson.loads(c.text)}]} for c in completions]
        prefix, full = (said[0], said[1:]) if context == "question" else (None, said)
        found = [score_from_prompt_logprobs(prefix, answer) for answer in full]
        return [_perplexities(record, [(one.logprob_sum, one.tokens, one.error) for one in found])]

    config = {"context": context, "template": template, "through": "prompt_logprobs"}
    return Step("score", requests, parse, config, attempts=1)


def _perplexities(record: Record, scores: Sequence[Sequence[Any]]) -> Record:
    """Turn (sum of log-probabilities, tokens, error) of each fact into exp of the mean negative log-likelihood."""
    for number, (_, _, error) in enumerate(scores, 1):
        if error:
            raise Reject(f"fact {number} cannot be scored: {error}")
    return {"id": record["id"], "perplexities": [math.exp(min(700.0, -total / tokens)) for total, tokens, _ in scores]}


class LocalScorer(LocalBackend):
    """A local model that scores: its answer is a request's continuations' scores as JSON [[sum, tokens, error], ...]."""

    def room(self, local: LocalModel) -> int:
        """Take many questions at once: they are sorted by length into batches where they are scored."""
        return BATCH_QUESTIONS

    def answer(self, local: LocalModel, requests: list[Request]) -> list[Answer]:
        """Score what every request asks for."""
        from kt.perplexity import score_contexts

        started = time.monotonic()
        scores = score_contexts(local, [(_context(r, local), r.body["continuations"]) for r in requests])
        latency = (time.monotonic() - started) / len(requests)
        answers = []
        for group in scores:
            text = orjson.dumps([[one.logprob_sum, one.tokens, one.error] for one in group]).decode()
            answers.append(Answer(text, text, "ok", "", self.model, sum(one.tokens for one in group), 0, latency))
        return answers


def _context(request: Request, local: LocalModel) -> str:
    if "context" in request.body:
        return str(request.body["context"])
    return render_prompt(request.body["question"], request.body["template"], local.tokenizer)
