"""`kt build-data`: a question-answer file in, the training sets of both stages out, step by step through files."""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt import augment, compare
from kt.backends import StartedEndpoint, scorer, writers
from kt.cache import Cache
from kt.client import Client, Counters
from kt.config import BuildConfig, find_shipped
from kt.errors import InputError
from kt.items import read_items
from kt.pipeline import Inputs, Step, StepResult, Watcher, run_step
from kt.prompts import Prompt, load_prompts
from kt.records import Record, file_hash, follow, jsonl_writer, output_error, read_jsonl, write_json
from kt.scoring import score, score_served
from kt.training_sets import write_sets


@dataclass
class BuildResult:
    """What a build did: what each step wrote, the training sets' sizes, and what was asked of whom."""

    steps: list[StepResult] = field(default_factory=list)
    sets: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)

    @property
    def read(self) -> int:
        """Items read, rejects of the first step included."""
        return self.steps[0].read

    @property
    def rejected(self) -> int:
        """Records rejected over all steps; each is in its step's rejected.jsonl with the reason."""
        return sum(step.rejected for step in self.steps)


@dataclass
class Build:
    """The steps of one build, sharing a cache, the clients and the output folder."""

    config: BuildConfig
    client: Client
    scoring_client: Client | None
    prompts: Mapping[str, Prompt]
    watcher: Watcher
    result: BuildResult = field(default_factory=BuildResult)

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    def records(self, step: str) -> Path:
        """Where a step's records are."""
        return self.out / step / "records.jsonl"

    def step(self, step: Step, *sources: str, inputs: Inputs | None = None, client: Client | None = None) -> None:
        """Run a step on the records of the steps named in `sources` (or on `inputs` made of them)."""
        paths = [self.records(source) for source in sources]
        total = next((done.written for done in self.result.steps if done.name == sources[0]), None)
        made = run_step(
            step,
            inputs or (lambda: read_jsonl(paths[0])),
            paths,
            self.out / step.name,
            client or self.client,
            replay=self.config.backend == "replay",
            total=total,
            watcher=self.watcher,
        )
        self.result.steps.append(made)


def build_data(
    config: BuildConfig,
    *,
    watcher: Watcher | None = None,
    counters: Counters | None = None,
    on_wait: Callable[..., Any] | None = None,
) -> BuildResult:
    """Build the data sets of both stages; everything received is in the cache whatever happens on the way."""
    gc.freeze()  # records live for one turn of a loop and make no cycles: looking for some costs a tenth of a replay
    gc.set_threshold(100_000, 20, 50)
    prompts = load_prompts(find_shipped("prompts", config.prompts))
    _check_out(Path(config.out))
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(_open_cache(config))
        backends = writers(config, cache, Path(config.out) / "engine.log", on_wait)
        for backend in backends:
            if isinstance(backend, StartedEndpoint):
                stack.callback(backend.stop)
        shared = counters or Counters()
        client = stack.enter_context(Client(cache, backends, config.workers, config.max_cost, shared))
        scoring = _scoring_client(config, client)
        if scoring is not None:
            stack.enter_context(scoring)
        build = Build(config, client, scoring, prompts, watcher or Watcher())
        build.result.counters = shared
        run(build)
        return build.result


def run(build: Build) -> None:
    """Run every step in the order of the data, then write the training sets."""
    config, prompts, seed, attempts = build.config, build.prompts, build.config.seed, build.config.attempts
    read = _read_items(build)
    build.result.steps.append(read)
    build.step(augment.extract(prompts["extract"], seed, attempts), "items")
    _choose(build)
    build.step(augment.rewrite_question(prompts["rewrite-question"], seed, attempts), "choose")
    build.step(augment.rewrite_answer(prompts["rewrite-answer"], seed, attempts), "rewrite-question")
    build.step(compare.rephrase(prompts["rephrase"], seed, attempts), "extract")
    if "completeness" in config.aspects:
        build.step(compare.delete(config.delete_share, seed), "extract")
    if "factuality" in config.aspects:
        build.step(compare.revise(prompts["revise"], seed, attempts), "extract")
    if "logicality" in config.aspects:
        build.step(compare.shuffle(seed), "extract")
    worse = {aspect: compare.ASPECTS[aspect] for aspect in compare.ASPECTS if aspect in config.aspects}
    if config.rejected == "rephrase":
        for aspect, source in worse.items():
            name = worse[aspect] = f"rephrase-{source}"
            build.step(compare.rephrase(prompts["rephrase"], seed, attempts, name), source)
    _remove_stale(build)
    build.result.sets = write_sets(build.out, {aspect: build.records(step) for aspect, step in worse.items()})
    _write_manifest(build)


def _remove_stale(build: Build) -> None:
    """Remove what an earlier run into this folder left of steps that this one does not have."""
    shutil.rmtree(build.out / "sets", ignore_errors=True)
    optional = {"score", *compare.ASPECTS.values(), *(f"rephrase-{step}" for step in compare.ASPECTS.values())}
    for name in optional - {step.name for step in build.result.steps}:
        shutil.rmtree(build.out / name, ignore_errors=True)


def _read_items(build: Build) -> StepResult:
    """Normalise the input files into items/records.jsonl; unusable items go to its rejects."""
    folder = build.out / "items"
    result = StepResult("items", folder / "records.jsonl")
    build.watcher.begin("items", None)
    (build.out / "manifest.json").unlink(missing_ok=True)
    with jsonl_writer(result.records) as write, jsonl_writer(folder / "rejected.jsonl") as reject:
        for found in read_items(build.config.data, build.config.limit):
            result.read += 1
            if found.item is None:
                result.rejected += 1
                reject({"where": _place(found.where), "step": "items", "reason": found.reason, "record": found.raw})
            else:
                result.written += 1
                write(found.item)
    if not result.written:
        raise InputError(f"{', '.join(build.config.data)}: no usable item of {result.read}; see {folder / 'rejected.jsonl'}")
    build.watcher.end(result)
    return result


def _place(where: str) -> str:
    """Name file and line without the folders above, which differ between machines."""
    return where.rsplit("/", 1)[-1]


def _choose(build: Build) -> None:
    """Score the facts if perplexity decides, then choose the difficult ones."""
    from kt.perplexity import choose_difficult

    difficulty = build.config.difficulty
    step = augment.choose(difficulty.mode, difficulty.share, build.config.seed, choose_difficult)
    if difficulty.mode != "ppl":
        build.step(step, "extract")
        return
    make = score if difficulty.scorer else score_served
    build.step(make(difficulty.context, difficulty.template), "extract", client=build.scoring_client)
    build.step(step, "extract", "score", inputs=lambda: _scored(build.records("extract"), build.records("score")))


def _scored(facts: Path, scores: Path) -> Iterator[Record]:
    for record, found in follow(read_jsonl(facts), read_jsonl(scores)):
        if found is not None:
            yield {**record, "perplexities": found["perplexities"]}


def _scoring_client(config: BuildConfig, client: Client) -> Client | None:
    """Return the client of the scoring step: a local model's, or the served model's without fallback."""
    if config.difficulty.mode != "ppl":
        return None
    if config.difficulty.scorer:
        return client.beside([scorer(config, client.cache)], max(512, config.workers))
    if config.backend in ("llama-cpp", "openai"):
        raise InputError(
            f"--difficulty ppl: backend {config.backend} gives no log-probabilities of a prompt; give --scorer PATH"
            " (a Hugging Face folder), or --difficulty random or all"
        )
    return client.beside(client.backends[:1], config.workers)


def _open_cache(config: BuildConfig) -> Cache:
    return Cache(config.cache, read_only=config.backend == "replay")


def _check_out(out: Path) -> None:
    """Fail before the first call if the output folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise output_error(out, error) from error


def settings(config: BuildConfig) -> dict[str, Any]:
    """Return the part of a config that can change the data: what the manifest records of it."""
    said = config.model_dump(
        include={"seed", "prompts", "limit", "attempts", "difficulty", "delete_share", "aspects", "rejected"}
    )
    said["difficulty"] = {k: v for k, v in said["difficulty"].items() if k not in ("scorer", "adapter")}
    said["prompts"] = Path(config.prompts).name
    return said


def _write_manifest(build: Build) -> None:
    steps: Iterable[StepResult] = build.result.steps
    manifest = {
        "kind": "build-data",
        "config": settings(build.config),
        "inputs": {Path(p).name: file_hash(p) for p in build.config.data if p != "-"},
        "prompts": {name: prompt.hash for name, prompt in sorted(build.prompts.items())},
        "steps": {s.name: {"read": s.read, "written": s.written, "rejected": s.rejected} for s in steps},
        "sets": build.result.sets,
        "outputs": {f"sets/{p.name}": file_hash(p) for p in sorted((build.out / "sets").iterdir())},
    }
    write_json(build.out / "manifest.json", manifest)
