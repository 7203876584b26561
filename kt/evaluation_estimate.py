"""What an evaluation would ask of its judges: `kt evaluate --dry-run`. Asks nothing, writes nothing.

The calls of judge-pair, judge-single and extract are known beforehand; those of check-fact only for the answers that the
cache has split. How many facts another answer holds, the split will say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kt import facts, judge
from kt.answers import join, read_answers
from kt.backends import writers
from kt.client import Client
from kt.config import EvaluateConfig
from kt.errors import InputError
from kt.estimate import Estimate, existing_cache, priced, sentences
from kt.evaluate import as_writer, comparisons, evidence_of, judges_of, needed_prompts
from kt.evaluation_manifest import check_out
from kt.metrics import read_encoder
from kt.pipeline import Done, Missing
from kt.prompts import Prompt
from kt.records import Record


@dataclass
class EvaluationEstimate(Estimate):
    """An evaluation's calls; `items` counts the test items, `unsplit` the answers whose facts nobody knows yet."""

    items: dict[str, int] = field(default_factory=dict)
    unsplit: dict[str, int] = field(default_factory=lambda: {"answers": 0, "sentences": 0})


@dataclass(frozen=True)
class Walk:
    """A way through an evaluation with the cache alone: what it goes by, and where it counts."""

    config: EvaluateConfig
    prompts: Mapping[str, Prompt]
    clients: Sequence[Client]
    items: Sequence[Record]
    plan: EvaluationEstimate

    @property
    def names(self) -> list[str]:
        """The methods, in the order given."""
        return list(self.config.answers)


def estimate_evaluation(config: EvaluateConfig) -> EvaluationEstimate:
    """Count what an evaluation would ask; what is wrong with its data, answers, prompts or documents is said as ever."""
    check_out(config)
    if "bertscore" in config.metrics:
        read_encoder(config.encoder or "", config.encoder_layer)
    prompts, plan = needed_prompts(config), EvaluationEstimate()
    with contextlib.ExitStack() as stack:
        evidence = evidence_of(config, stack)
        cache = stack.enter_context(existing_cache(config.cache))
        judges = judges_of(config)
        clients = [Client(cache, writers(as_writer(config, one), cache, Path("engine.log"))) for one in judges]
        walk = Walk(config, prompts, clients, _items(config, plan), plan)
        _pairs(walk)
        _singles(walk)
        _facts(walk, evidence)
    _price(plan, [client.backends[0].model for client in clients])
    return plan


def _items(config: EvaluateConfig, plan: EvaluationEstimate) -> list[Record]:
    answers = {name: read_answers(name, place) for name, place in config.answers.items()}
    rejects: list[Record] = []
    items = list(join(config.data, answers, config.limit, rejects.append))
    if not items:
        raise InputError(f"{', '.join(config.data)}: no usable item of {len(rejects)}; see `kt check --data`")
    plan.items = {"read": len(items) + len(rejects), "used": len(items), "rejected": len(rejects)}
    return items


def _pairs(walk: Walk) -> None:
    """Count the comparisons of answers, by each judge, in both orders."""
    config = walk.config
    if "judge" not in config.metrics:
        return
    who, prompt = comparisons(walk.names, config.all_pairs, config.compare), walk.prompts["judge-pair"]
    for name, client in zip(("judge", "judge-2"), walk.clients, strict=False):
        step = judge.judge_pair(prompt, config.seed, config.attempts, name)
        walk.plan.begin(step)
        for record in judge.pairs(walk.items, who, config.criteria):
            walk.plan.ask(step, record, client, _length(prompt))


def _singles(walk: Walk) -> None:
    """Count the scores of single answers."""
    config = walk.config
    if "score" not in config.metrics:
        return
    prompt = walk.prompts["judge-single"]
    step = judge.judge_single(prompt, config.seed, config.attempts)
    walk.plan.begin(step)
    for record in judge.singles(walk.items, walk.names, config.criteria):
        walk.plan.ask(step, record, walk.clients[0], _length(prompt))


def _facts(walk: Walk, evidence: facts.Evidence) -> None:
    """Count the splits of answers into facts, and the checks of those facts that are known."""
    config, plan = walk.config, walk.plan
    if "facts" not in config.metrics:
        return
    prompt, client = walk.prompts["check-fact"], walk.clients[0]
    split = facts.split(walk.prompts["extract"], config.seed, config.attempts)
    check = facts.check_fact(prompt, config.seed, config.attempts)
    plan.begin(split)
    plan.begin(check)
    for record in facts.answers_of(walk.items, walk.names):
        found = plan.ask(split, record, client, len(record["answer"]))
        if isinstance(found, Missing):
            plan.unsplit["answers"] += 1
            plan.unsplit["sentences"] += len(sentences(record["answer"]))
        elif isinstance(found, Done):
            for statement in facts.statements(found.records, evidence):
                plan.ask(check, statement, client, _length(prompt))


def _length(prompt: Prompt) -> int:
    """Return how many characters a prompt's worked examples answer with in the mean; 0 of a prompt without any."""
    texts = [message["content"] for message in prompt.prefix if message["role"] == "assistant"]
    return sum(map(len, texts)) // max(1, len(texts))


def _price(plan: Estimate, models: Sequence[str]) -> None:
    """Price each judge's steps by its own model; the second one compares and does nothing else."""
    own = [[one for one in plan.steps if one.name != "judge-2"], [one for one in plan.steps if one.name == "judge-2"]]
    found = [priced(steps, model) for steps, model in zip(own, models, strict=False) if steps]
    costs = [cost for cost, _ in found if cost is not None]
    plan.cost = sum(costs) if len(costs) == len(found) else None
    plan.price_line = "; ".join(line for _, line in found) or "these metrics ask nobody"
