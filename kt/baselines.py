"""The rivals' training sets (method.md: Baselines): preferences among answers that were sampled from the `sft` model.

RLAIF: a judge prefers the better of two answers. FactTune (Tian et al. 2023, its reference-based form by default): the
answer with the greater share of correct facts is preferred. Both learn from the pairs by plain DPO.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt import facts, judge
from kt.backends import StartedEndpoint, writers
from kt.cache import Cache
from kt.client import Client, Counters
from kt.config import BuildConfig, find_shipped
from kt.errors import InputError, PromptError
from kt.pipeline import Inputs, Reject, Step, StepResult, Watcher, run_step
from kt.prompts import Prompt, load_prompts
from kt.records import Record, check_folder, file_hash, follow, read_jsonl, write_json, write_jsonl
from kt.request import Completion
from kt.training_sets import files_of, write_preferences

NEEDS = {"rlaif": ("judge-pair",), "facttune": ("extract", "check-fact")}
"""The prompts that each baseline's preferences are made with."""


@dataclass
class Preferences:
    """The making of one baseline's preferences: who is asked, its folder, and what was done so far."""

    config: BuildConfig
    client: Client
    prompts: Mapping[str, Prompt]
    out: Path
    watcher: Watcher
    steps: list[StepResult] = field(default_factory=list)

    def records(self, step: str) -> Path:
        """Where a step's records are."""
        return self.out / step / "records.jsonl"

    def read(self, step: str) -> Iterator[Record]:
        """Read a step's records."""
        return read_jsonl(self.records(step))

    def step(self, step: Step, inputs: Inputs, *sources: Path) -> None:
        """Run a step on what `inputs` makes of the source files."""
        replay = self.config.backend == "replay"
        done = run_step(step, inputs, sources, self.out / step.name, self.client, replay=replay, watcher=self.watcher)
        self.steps.append(done)


def build_preferences(
    baseline: str,
    config: BuildConfig,
    sampled: Path,
    out: Path,
    settings: Mapping[str, Any],
    *,
    watcher: Watcher | None = None,
    counters: Counters | None = None,
    on_wait: Callable[..., Any] | None = None,
) -> int:
    """Make a baseline's preference pairs of sampled answers, in OUT/sets/BASELINE.jsonl; return their number.

    `sampled` is what `kt generate` wrote of the `sft` model: items/ (with gold answers) and sft/. The judge or checker is
    the config's writer, without a fallback: preferences of two judges are no one set. `settings` are criteria and rule
    (rlaif), or evidence (facttune). Raises InputError if no answer is preferred to another.
    """
    check_folder(out)
    (out / "manifest.json").unlink(missing_ok=True)
    config = config.model_copy(update={"fallback": None})
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(Cache(config.cache, read_only=config.backend == "replay"))
        backends = writers(config, cache, out / "engine.log", on_wait)
        for backend in backends:
            if isinstance(backend, StartedEndpoint):
                stack.callback(backend.stop)
        client = stack.enter_context(Client(cache, backends, config.workers, config.max_cost, counters or Counters()))
        made = Preferences(config, client, needed_prompts(baseline, config.prompts), out, watcher or Watcher())
        sources = [sampled / "items" / "records.jsonl", sampled / "sft" / "records.jsonl"]
        made.step(usable(), lambda: _by_question(*sources), *sources)
        (_by_judge if baseline == "rlaif" else _by_facts)(made, settings)
    count = write_preferences(out / "sets", baseline, made.read("prefer"))
    if not count:
        raise InputError(
            f"{out}: no answer is preferred to another; {out}/*/rejected.jsonl say why for each question: more samples or a"
            " higher temperature give answers that differ more"
        )
    _write_manifest(made, baseline, settings, sources)
    return count


def needed_prompts(baseline: str, where: str) -> dict[str, Prompt]:
    """Return the prompts that a baseline needs; PromptError names what a set lacks."""
    found = load_prompts(find_shipped("prompts", where))
    if missing := [name for name in NEEDS[baseline] if name not in found]:
        raise PromptError(f"prompts {where}: no {', '.join(f'{name}.yaml' for name in missing)}, which {baseline} needs")
    return {name: found[name] for name in NEEDS[baseline]}


# ---- what can be compared --------------------------------------------------------------------------------------------


def _by_question(items: Path, samples: Path) -> Iterator[Record]:
    grouped = itertools.groupby(read_jsonl(samples), key=lambda record: record["item"])
    for item, found in follow(read_jsonl(items), ({"id": name, "samples": list(group)} for name, group in grouped)):
        yield {"id": item["id"], "question": item["question"], "gold": item["answer"], "samples": found and found["samples"]}


def usable() -> Step:
    """Samples → {"id", "question", "gold", "answers": {number: text}}: those that can be preferred or passed over.

    Empty answers are left out, those cut at their longest length (preferring one would teach to stop anywhere), and an
    answer in the very words of an earlier one.
    """

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        if record["samples"] is None:
            raise Reject("no sample: the question leaves no room for an answer")
        answers: dict[str, str] = {}
        left_out: Counter[str] = Counter()
        for number, sample in enumerate(record["samples"], 1):
            text = sample["answer"]
            repeated = text in answers.values()
            why = "empty" if not text else "cut" if sample["finish_reason"] == "length" else "repeated" if repeated else ""
            if why:
                left_out[why] += 1
            else:
                answers[str(number)] = text
        if len(answers) < 2:
            why = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
            raise Reject(f"fewer than two answers to compare: {len(record['samples'])} samples, {why}")
        return [{**{key: record[key] for key in ("id", "question", "gold")}, "answers": answers}]

    return Step("answers", lambda _: (), parse)


# ---- RLAIF -----------------------------------------------------------------------------------------------------------


def _by_judge(made: Preferences, settings: Mapping[str, Any]) -> None:
    config, criteria = made.config, settings["criteria"]
    step = judge.judge_pair(made.prompts["judge-pair"], config.seed, config.attempts)
    made.step(step, lambda: _rivals(made.read("answers"), criteria), made.records("answers"))
    step = prefer_judged(criteria, settings["rule"])
    made.step(step, lambda: _grouped(made, "judge"), made.records("answers"), made.records("judge"))


def _rivals(items: Iterable[Record], criteria: Sequence[str]) -> Iterator[Record]:
    for item in items:
        yield from judge.pairs([item], list(itertools.combinations(item["answers"], 2)), criteria)


def prefer_judged(criteria: Sequence[str], rule: judge.Rule) -> Step:
    """Answers with the verdicts on every two of them → the pairs in which one wins more criteria than it loses.

    Each criterion is decided over both orders by the rule. A pair that lacks a verdict of one criterion is no pair.
    """

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        outcomes: dict[tuple[str, str], list[str]] = {}
        for judged in record["found"]:
            outcomes.setdefault((judged["one"], judged["other"]), []).append(judge.outcome_of(judged["verdicts"], rule))
        found, ties, unjudged = [], 0, 0
        for one, other in itertools.combinations(record["answers"], 2):
            won = outcomes.get((one, other), [])
            lead = won.count("win") - won.count("lose")
            if len(won) < len(criteria):
                unjudged += 1
            elif lead:
                found.append(_pair(record, "helpfulness", *((one, other) if lead > 0 else (other, one))))
            else:
                ties += 1
        if not found:
            raise Reject(f"no preference: {ties} tied, {unjudged} without a verdict")
        return found

    return Step("prefer", lambda _: (), parse, {"criteria": list(criteria), "rule": rule})


# ---- FactTune --------------------------------------------------------------------------------------------------------


def _by_facts(made: Preferences, settings: Mapping[str, Any]) -> None:
    config = made.config
    evidence = facts.gold_evidence if settings["evidence"] == "gold" else facts.no_evidence
    step = facts.split(made.prompts["extract"], config.seed, config.attempts)
    made.step(step, lambda: _each_answer(made.read("answers")), made.records("answers"))
    step = facts.check_fact(made.prompts["check-fact"], config.seed, config.attempts)
    made.step(step, lambda: facts.statements(made.read("split"), evidence), made.records("split"))
    write_jsonl(made.records("facts"), facts.per_answer(made.read("split"), made.read("check")))
    made.step(prefer_correct(), lambda: _grouped(made, "facts"), made.records("answers"), made.records("facts"))


def _each_answer(items: Iterable[Record]) -> Iterator[Record]:
    for item in items:
        yield from facts.answers_of([item], list(item["answers"]))


def prefer_correct() -> Step:
    """Answers with their fact counts → a pair of every two whose shares of correct facts differ; no facts, no share."""

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        shares = {row["name"]: row["correct_share"] for row in record["found"] if row["correct_share"] is not None}
        found = [
            _pair(record, "factuality", *((one, other) if shares[one] > shares[other] else (other, one)))
            for one, other in itertools.combinations(shares, 2)
            if shares[one] != shares[other]
        ]
        if not found:
            raise Reject(f"no preference: {len(shares)} answers with checked facts, all of one share of correct ones")
        return found

    return Step("prefer", lambda _: (), parse)


# ---- what is left ----------------------------------------------------------------------------------------------------


def _grouped(made: Preferences, step: str) -> Iterator[Record]:
    """Yield every question's answers with what a step found of them."""
    groups = itertools.groupby(made.read(step), key=lambda record: record["item"])
    for record, found in follow(made.read("answers"), ({"id": name, "found": list(group)} for name, group in groups)):
        yield {**record, "found": found["found"] if found else []}


def _pair(record: Record, aspect: str, better: str, worse: str) -> Record:
    answers = record["answers"]
    made = {"id": f"{record['id']}/{better}-over-{worse}", "item": record["id"], "aspect": aspect}
    return {**made, "prompt": record["question"], "chosen": answers[better], "rejected": answers[worse]}


def _write_manifest(made: Preferences, baseline: str, settings: Mapping[str, Any], sources: Iterable[Path]) -> None:
    """Write manifest.json, last: its existence means that the set is whole."""
    files = [made.out / "sets" / name for name in (*files_of(baseline), "dataset_info.json")]
    said = {"baseline": baseline, "seed": made.config.seed, "attempts": made.config.attempts, **settings}
    manifest = {
        "kind": "preferences",
        "config": said,
        "inputs": {f"samples/{path.parent.name}": file_hash(path) for path in sources},
        "prompts": {name: prompt.hash for name, prompt in sorted(made.prompts.items())},
        "steps": {s.name: {"read": s.read, "written": s.written, "rejected": s.rejected} for s in made.steps},
        "sets": {baseline: next(s.written for s in made.steps if s.name == "prefer")},
        "outputs": {f"sets/{path.name}": file_hash(path) for path in files},
    }
    write_json(made.out / "manifest.json", manifest)
