"""What a build would ask, what of it is cached, and what it would cost: `--dry-run`. Asks nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt import augment, compare
from kt.backends import writers
from kt.cache import Cache
from kt.client import Client
from kt.config import BuildConfig, find_shipped
from kt.items import read_items
from kt.pipeline import Done, Missing, Rejected, Step, outcome
from kt.prices import price_of
from kt.prompts import load_prompts
from kt.records import Record
from kt.wire import Dialect, wire_body

CHARS_PER_TOKEN = 4
"""English text in common tokenizers; an estimate is all that a dry run gives."""

DEFAULT_FALLBACK = "gpt-4o-mini"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass
class StepEstimate:
    """One step's calls and tokens; tokens are those of the calls still to send."""

    name: str
    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Estimate:
    """A whole build's calls, and the first request as it would go out."""

    steps: list[StepEstimate] = field(default_factory=list)
    first_request: dict[str, Any] = field(default_factory=dict)
    price_line: str = ""
    cost: float | None = None

    @property
    def to_send(self) -> int:
        """Calls that the cache does not answer."""
        return sum(step.calls - step.cached for step in self.steps)

    @property
    def tokens(self) -> int:
        """Tokens of those calls, both ways."""
        return sum(step.prompt_tokens + step.completion_tokens for step in self.steps)


def estimate(config: BuildConfig) -> Estimate:
    """Walk through a build with the cache alone; where an answer is missing, the original answer's sentences stand in."""
    prompts, seed, tries = load_prompts(find_shipped("prompts", config.prompts)), config.seed, config.attempts
    steps = [
        augment.extract(prompts["extract"], seed, tries),
        augment.rewrite_question(prompts["rewrite-question"], seed, tries),
        augment.rewrite_answer(prompts["rewrite-answer"], seed, tries),
        compare.rephrase(prompts["rephrase"], seed, tries),
    ]
    if "factuality" in config.aspects:
        steps.append(compare.revise(prompts["revise"], seed, tries))
    plan = Estimate([StepEstimate(step.name) for step in steps])
    with _cache(config) as cache:
        backends = writers(config, cache, Path("engine.log"))
        client = Client(cache, backends)
        for read in read_items(config.data, config.limit):
            if read.item is not None:
                _walk(read.item, steps, plan, client, config)
    _price(plan, config)
    return plan


def _cache(config: BuildConfig) -> Cache:
    """Open the cache without making one: a dry run of a first run has none."""
    exists = Path(config.cache).exists()
    return Cache(config.cache if exists else ":memory:", read_only=exists)


def _walk(item: Record, steps: list[Step], plan: Estimate, client: Client, config: BuildConfig) -> None:
    extract, question, answer, *others = steps
    facts = _ask(extract, item, plan, client, item["answer"], config) or {
        **item,
        "facts": _SENTENCE.split(item["answer"].strip()),
    }
    count = max(1, round(len(facts["facts"]) * (1 if config.difficulty.mode == "all" else config.difficulty.share)))
    chosen = {"id": item["id"], "question": item["question"], "facts": facts["facts"][:count]}
    fine = _ask(question, chosen, plan, client, item["question"], config) or chosen
    _ask(answer, fine, plan, client, " ".join(chosen["facts"]), config)
    for step in others:
        _ask(step, facts, plan, client, " ".join(facts["facts"]), config)


def _ask(step: Step, record: Record, plan: Estimate, client: Client, expected: str, config: BuildConfig) -> Record | None:
    """Count a step's calls for a record; return what the cached answer makes of it, or None."""
    estimate = next(one for one in plan.steps if one.name == step.name)
    found = outcome(step, record, client)
    if not plan.first_request:
        dialect: Dialect = "llama-cpp" if config.backend == "llama-cpp" else "openai"
        plan.first_request = wire_body(step.requests(record)[0], client.backends[0].model, dialect)
    if isinstance(found, Missing):
        estimate.calls += len(found.asked)
        estimate.prompt_tokens += sum(len(str(one.request.body.get("messages"))) for one in found.asked) // CHARS_PER_TOKEN
        estimate.completion_tokens += len(expected) // CHARS_PER_TOKEN + 8
        return None
    if isinstance(found, Rejected):
        estimate.calls += step.attempts
        estimate.cached += step.attempts
        return None
    assert isinstance(found, Done)
    estimate.calls += len(found.completions)
    estimate.cached += len(found.completions)
    return found.records[0]


def _price(plan: Estimate, config: BuildConfig) -> None:
    model = config.fallback.model if config.fallback else DEFAULT_FALLBACK
    price = price_of(model)
    if price is None:
        plan.price_line = f"no price for {model} in prices.yaml"
        return
    sent = [(step.prompt_tokens, step.completion_tokens) for step in plan.steps]
    plan.cost = sum(prompt * price.prompt + completion * price.completion for prompt, completion in sent)
    plan.price_line = f"at the price of {model} about ${plan.cost:.2f}"
