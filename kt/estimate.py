"""What a build would ask, what of it is cached, and what it would cost: `--dry-run`. Asks nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt import augment, compare
from kt.backends import writers
from kt.cache import Cache
from kt.client import Asked, Client
from kt.config import BuildConfig, find_shipped
from kt.items import read_items
from kt.pipeline import Done, Missing, Outcome, Step, outcome
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
    """One step's calls and tokens; tokens are those of the calls still to send.

    `cached` calls have their answer in the cache; `repeated` ones equal an earlier one of the same run, which is sent once.
    """

    name: str
    prompt: str
    calls: int = 0
    cached: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def to_send(self) -> int:
        """Calls that nothing answers yet."""
        return self.calls - self.cached - self.repeated


@dataclass
class Estimate:
    """All calls of a run by step, and the first request as it would go out."""

    steps: list[StepEstimate] = field(default_factory=list)
    first_request: dict[str, Any] = field(default_factory=dict)
    price_line: str = ""
    cost: float | None = None

    def __post_init__(self) -> None:
        self._missing: set[str] = set()

    @property
    def to_send(self) -> int:
        """Calls that nothing answers yet."""
        return sum(step.to_send for step in self.steps)

    @property
    def tokens(self) -> int:
        """Tokens of those calls, both ways."""
        return sum(step.prompt_tokens + step.completion_tokens for step in self.steps)

    def begin(self, step: Step) -> None:
        """Add a step with nothing counted yet."""
        self.steps.append(StepEstimate(step.name, step.config["prompt"]))

    def ask(self, step: Step, record: Record, client: Client, expected: int) -> Outcome:
        """Count a step's calls for a record; return what the cache makes of it.

        `expected` is the length of an answer in characters. Only the try that counts is counted; of a record that cannot
        pass, all of them.
        """
        counted = next(one for one in self.steps if one.name == step.name)
        found = outcome(step, record, client)
        if not self.first_request and (requests := step.requests(record)):
            dialect: Dialect = "llama-cpp" if client.backends[0].engine == "llama-cpp" else "openai"
            self.first_request = wire_body(requests[0], client.backends[0].model, dialect)
        if isinstance(found, Missing):
            self._count(counted, len(step.requests(record)), found.asked, expected)
        else:
            calls = len(found.completions) if isinstance(found, Done) else _tried(step, record, client)
            counted.calls += calls
            counted.cached += calls
        return found

    def _count(self, counted: StepEstimate, calls: int, missing: Sequence[Asked], expected: int) -> None:
        new = [asked for asked in missing if asked.key not in self._missing]
        self._missing.update(asked.key for asked in new)
        counted.calls += calls
        counted.cached += calls - len(missing)
        counted.repeated += len(missing) - len(new)
        counted.prompt_tokens += sum(len(str(one.request.body.get("messages"))) for one in new) // CHARS_PER_TOKEN
        counted.completion_tokens += len(new) * (expected // CHARS_PER_TOKEN + 8)


def _tried(step: Step, record: Record, client: Client) -> int:
    """Return how many answers to a rejected record the cache holds."""
    requests = step.requests(record)
    tries = [one.again(attempt, len(requests)) for attempt in range(step.attempts) for one in requests]
    return sum(client.lookup(backend, one) is not None for backend in client.backends for one in tries)


def existing_cache(path: str) -> Cache:
    """Open a cache to read, without making one: a dry run of a first run has none."""
    exists = Path(path).exists() and Path(path).stat().st_size > 0
    return Cache(path if exists else ":memory:", read_only=exists)


def sentences(text: str) -> list[str]:
    """Return a text's sentences, of which there are about as many as facts."""
    return _SENTENCE.split(text.strip())


def priced(steps: Sequence[StepEstimate], model: str) -> tuple[float | None, str]:
    """Return in dollars what steps would cost at a model's price, if it has one, and that in words."""
    price = price_of(model)
    if price is None:
        return None, f"no price for {model} in prices.yaml"
    cost = sum(step.prompt_tokens * price.prompt + step.completion_tokens * price.completion for step in steps)
    return cost, f"at the price of {model} about ${cost:.2f}"


# ---- a build ---------------------------------------------------------------------------------------------------------


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
    plan = Estimate()
    for step in steps:
        plan.begin(step)
    with existing_cache(config.cache) as cache:
        client = Client(cache, writers(config, cache, Path("engine.log")))
        for read in read_items(config.data, config.limit):
            if read.item is not None:
                _walk(read.item, steps, plan, client, config)
    plan.cost, plan.price_line = priced(plan.steps, config.fallback.model if config.fallback else DEFAULT_FALLBACK)
    return plan


def _walk(item: Record, steps: list[Step], plan: Estimate, client: Client, config: BuildConfig) -> None:
    extract, question, answer, *others = steps
    facts = _made(plan.ask(extract, item, client, len(item["answer"]))) or {**item, "facts": sentences(item["answer"])}
    count = max(1, round(len(facts["facts"]) * (1 if config.difficulty.mode == "all" else config.difficulty.share)))
    chosen = {"id": item["id"], "question": item["question"], "facts": facts["facts"][:count]}
    fine = _made(plan.ask(question, chosen, client, len(item["question"]))) or chosen
    plan.ask(answer, fine, client, len(" ".join(chosen["facts"])))
    for step in others:
        plan.ask(step, facts, client, len(" ".join(facts["facts"])))


def _made(found: Outcome) -> Record | None:
    return found.records[0] if isinstance(found, Done) else None
