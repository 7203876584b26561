"""`kt evaluate`: generated answers and the test items in, every number the paper reports out, each verdict kept."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt import facts, judge
from kt.agreement import agreement
from kt.answers import figures, join, read_answers
from kt.backends import StartedEndpoint, writers
from kt.cache import Cache
from kt.client import Client, Counters
from kt.config import BuildConfig, EvaluateConfig, JudgeConfig, validate
from kt.errors import InputError, PromptError
from kt.evaluation_manifest import check_out, clear, evidence_kind, judge_name, settings, write_evaluation_manifest
from kt.evidence import Collection
from kt.intervals import mean
from kt.metrics import Metric, bertscore, meteor, read_encoder
from kt.offline import go_offline
from kt.pipeline import Inputs, Step, StepResult, Watcher, run_step
from kt.prompts import Prompt, load_prompts
from kt.records import Record, check_folder, jsonl_writer, read_jsonl, write_json, write_jsonl

NEEDS = {"judge": ("judge-pair",), "score": ("judge-single",), "facts": ("extract", "check-fact")}


@dataclass
class Evaluation:
    """One evaluation under way: who is asked, what was done, and the numbers so far."""

    config: EvaluateConfig
    prompts: Mapping[str, Prompt]
    watcher: Watcher
    client: Client | None = None
    second: Client | None = None
    steps: list[StepResult] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)

    @property
    def out(self) -> Path:
        """The evaluation's folder."""
        return Path(self.config.out)

    @property
    def names(self) -> list[str]:
        """The methods, in the order given."""
        return list(self.config.answers)

    def records(self, step: str) -> Path:
        """Where a step's records are."""
        return self.out / step / "records.jsonl"

    def read(self, step: str) -> Iterator[Record]:
        """Read a step's records."""
        return read_jsonl(self.records(step))

    def rejects(self, step: str) -> list[Record]:
        """Read a step's rejects."""
        return list(read_jsonl(self.out / step / "rejected.jsonl"))

    def step(self, step: Step, source: str, inputs: Inputs, client: Client | None, asked: JudgeConfig | None) -> None:
        """Run a step on what `inputs` makes of the records of `source`."""
        assert client is not None
        assert asked is not None
        replay = asked.backend == "replay"
        done = run_step(step, inputs, [self.records(source)], self.out / step.name, client, replay=replay, watcher=self.watcher)
        self.steps.append(done)


def evaluate(
    config: EvaluateConfig,
    *,
    watcher: Watcher | None = None,
    counters: Counters | None = None,
    on_wait: Callable[..., Any] | None = None,
) -> Evaluation:
    """Evaluate; what is missing (WordNet, an encoder, documents, prompts) is said before the first call."""
    if config.offline:
        go_offline()
    check_out(config)
    check_folder(Path(config.out))
    run = Evaluation(config, needed_prompts(config), watcher or Watcher(), counters=counters or Counters())
    with contextlib.ExitStack() as stack:
        metrics = _metrics(config)
        evidence = evidence_of(config, stack)
        if config.judge:
            _ask_judges(run, stack, on_wait)
        answers = {name: read_answers(name, place) for name, place in config.answers.items()}
        clear(run.out)
        _items(run, answers)
        for part in (_metric_part(metrics), _judge_part, _score_part, _facts_part(evidence)):
            part(run)
    write_json(run.out / "results.json", run.results)
    write_evaluation_manifest(run.out, config, run.prompts, run.steps)
    return run


# ---- what is needed --------------------------------------------------------------------------------------------------


def needed_prompts(config: EvaluateConfig) -> dict[str, Prompt]:
    """Return the prompts that the metrics need, by name; PromptError if the set lacks one."""
    needed = [prompt for metric in config.metrics for prompt in NEEDS.get(metric, ())]
    if not needed:
        return {}
    found = load_prompts(config.prompts)
    if missing := [name for name in needed if name not in found]:
        raise PromptError(
            f"prompts {config.prompts}: no {', '.join(f'{name}.yaml' for name in missing)}, which kt evaluate needs"
        )
    return {name: found[name] for name in needed}


def _metrics(config: EvaluateConfig) -> list[Metric]:
    found: list[Metric] = []
    for name in ("meteor", "meteor-no-wordnet"):
        if name in config.metrics:
            found.append(meteor(with_wordnet=name == "meteor"))
    if "bertscore" in config.metrics:
        assert config.encoder is not None
        found.append(bertscore(read_encoder(config.encoder, config.encoder_layer)))
    return found


def evidence_of(config: EvaluateConfig, stack: contextlib.ExitStack) -> facts.Evidence:
    """Return what facts are checked against; a collection of documents is read, and closed with the stack."""
    kind = evidence_kind(config)
    if kind == "gold" or "facts" not in config.metrics:
        return facts.gold_evidence
    if kind == "none":
        return facts.no_evidence
    return facts.evidence_in(stack.enter_context(Collection(config.evidence)))


def _ask_judges(run: Evaluation, stack: contextlib.ExitStack, on_wait: Callable[..., Any] | None) -> None:
    """Open the cache, and a client for each judge."""
    config = run.config
    judges = judges_of(config)
    read_only = all(one.backend == "replay" for one in judges)
    cache = stack.enter_context(Cache(config.cache, read_only=read_only))
    for one, log in zip(judges, ("engine.log", "engine-2.log"), strict=False):
        backends = writers(as_writer(config, one), cache, run.out / log, on_wait)
        for backend in backends:
            if isinstance(backend, StartedEndpoint):
                stack.callback(backend.stop)
        if run.client is None:
            run.client = stack.enter_context(Client(cache, backends, config.workers, config.max_cost, run.counters))
        else:
            run.second = stack.enter_context(run.client.beside(backends, config.workers))


def judges_of(config: EvaluateConfig) -> list[JudgeConfig]:
    """Return the judges in order, none, one or two; InputError if two go by one name."""
    judges = [one for one in (config.judge, config.second_judge) if one is not None]
    if len(names := [judge_name(one) for one in judges]) > len(set(names)):
        raise InputError(f"both judges go by the name {names[0]}: rename one's folder, or give one a revision")
    return judges


def as_writer(config: EvaluateConfig, one: JudgeConfig) -> BuildConfig:
    """Return the settings by which a judge is asked, in the form in which a build's writer is."""
    shared = config.model_dump(
        include={"data", "out", "cache", "offline", "inside", "server", "workers", "timeout", "retries", "max_cost"}
    )
    return validate(BuildConfig, {**shared, **one.model_dump()}, "the judge")


# ---- the parts -------------------------------------------------------------------------------------------------------

Part = Callable[[Evaluation], None]


def _items(run: Evaluation, answers: Mapping[str, Mapping[str, Record]]) -> None:
    """Join the answers with the test items into items/records.jsonl, and note what stands beside every number."""
    config = run.config
    run.watcher.begin("items", None)
    rejects: list[Record] = []
    items = list(join(config.data, answers, config.limit, rejects.append))
    write_jsonl(run.records("items"), items)
    write_jsonl(run.out / "items/rejected.jsonl", rejects)
    if not items:
        raise InputError(f"{', '.join(config.data)}: no usable item of {len(rejects)}; see {run.out / 'items/rejected.jsonl'}")
    done = StepResult("items", run.records("items"), len(items) + len(rejects), len(items), len(rejects))
    run.steps.append(done)
    run.watcher.end(done)
    run.results |= {
        "items": {"read": done.read, "used": done.written, "rejected": done.rejected},
        "settings": settings(config),
        "methods": {name: figures(items, name, config.seed) for name in run.names},
    }


def _metric_part(metrics: Sequence[Metric]) -> Part:
    """Score every answer against its gold answer."""

    def part(run: Evaluation) -> None:
        if not metrics:
            return
        run.watcher.begin("metrics", None)
        items, count = list(run.read("items")), 0
        golds = [item["gold"] for item in items]
        with jsonl_writer(run.records("metrics")) as write:
            for name in run.names:
                texts = [item["answers"][name] for item in items]
                values: dict[str, list[float]] = {}
                for item, *found in zip(items, *(metric(texts, golds) for metric in metrics), strict=True):
                    scores = {key: score for each in found for key, score in each.items()}
                    write({"id": f"{item['id']}/{name}", "item": item["id"], "name": name, **scores})
                    count += 1
                    for key, score in scores.items():
                        values.setdefault(key, []).append(score)
                run.results["methods"][name]["metrics"] = {
                    key: mean(of, run.config.seed, f"{key}:{name}") for key, of in values.items()
                }
        run.steps.append(StepResult("metrics", run.records("metrics"), count, count))
        run.watcher.end(run.steps[-1])

    return part


def comparisons(names: Sequence[str], all_pairs: bool, chosen: str | None = None) -> list[tuple[str, str]]:
    """Return who is compared with whom: the chosen one (or the first) with each of the others, or each with each."""
    first = names[0] if chosen is None else chosen
    ordered = [first, *(name for name in names if name != first)]
    return list(itertools.combinations(ordered, 2)) if all_pairs else [(first, other) for other in ordered[1:]]


def _judge_part(run: Evaluation) -> None:
    """Compare the answers two by two, by each criterion; with a second judge, say how far the two agree."""
    config = run.config
    if "judge" not in config.metrics:
        return
    who = comparisons(run.names, config.all_pairs, config.compare)
    judges = [("judge", run.client, config.judge), ("judge-2", run.second, config.second_judge)]
    tables, labels = [], {}
    for name, client, one in judges:
        if one is None:
            continue
        step = judge.judge_pair(run.prompts["judge-pair"], config.seed, config.attempts, name)
        run.step(step, "items", lambda: judge.pairs(run.read("items"), who, config.criteria), client, one)
        table = judge.tally(run.read(name), run.rejects(name), config.rule, config.seed)
        tables.append({"judge": judge_name(one), "comparisons": table})
        asked = (record for record in run.read(name) if record["decided_by"] == "judge")
        labels[judge_name(one)] = {record["id"]: judge.outcome_of(record["verdicts"], config.rule) for record in asked}
    run.results["judges"] = tables
    if len(labels) > 1:
        run.results["agreement"] = agreement(labels)


def _score_part(run: Evaluation) -> None:
    """Score every answer from 1 to 10 by each criterion."""
    config = run.config
    if "score" not in config.metrics:
        return
    step = judge.judge_single(run.prompts["judge-single"], config.seed, config.attempts)
    run.step(step, "items", lambda: judge.singles(run.read("items"), run.names, config.criteria), run.client, config.judge)
    scores = judge.mean_scores(run.read("score"), run.rejects("score"), config.seed)
    for name in run.names:
        run.results["methods"][name]["scores"] = scores.get(name, {})


def _facts_part(evidence: facts.Evidence) -> Part:
    """Split every answer into facts, check each, and count."""

    def part(run: Evaluation) -> None:
        config = run.config
        if "facts" not in config.metrics:
            return
        step = facts.split(run.prompts["extract"], config.seed, config.attempts)
        run.step(step, "items", lambda: facts.answers_of(run.read("items"), run.names), run.client, config.judge)
        step = facts.check_fact(run.prompts["check-fact"], config.seed, config.attempts)
        run.step(step, "split", lambda: facts.statements(run.read("split"), evidence), run.client, config.judge)
        rows = facts.per_answer(run.read("split"), run.read("check"))
        write_jsonl(run.records("facts"), rows)
        rejected = [reject["record"]["name"] for reject in run.rejects("split")]
        for name in run.names:
            run.results["methods"][name]["facts"] = facts.totals(rows, name, rejected.count(name), config.seed)

    return part
