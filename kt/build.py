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
from kt.intake import take_in
from kt.pipeline import Inputs, Step, StepResult, Watcher, run_step
from kt.prompts import Prompt, load_prompts
from kt.records import Record, check_folder, file_hash, follow, input_hashes, read_jsonl, write_json
from kt.scoring import score, score_served
from kt.side_by_side import side_by_side
from kt.training_sets import dataset_info, files_of, write_answers, write_pairs


@dataclass
class BuildResult:
    """What a build did: what each step wrote, the training sets' sizes and hashes (by file), and what was asked of whom."""

    steps: list[StepResult] = field(default_factory=list)
    sets: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    hashes: dict[str, str] = field(default_factory=dict)

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

    def wrote(self, sets: Mapping[str, int]) -> None:
        """Note the training sets of a stage and the hashes of their files."""
        self.result.sets |= sets
        files = (self.out / "sets" / name for each in sets for name in files_of(each))
        self.result.hashes |= {path.name: file_hash(path) for path in files}

    def take(self, apart: Mapping[str, Any]) -> None:
        """Take over what a stage did in a copy of this process."""
        for name, read, written, rejected in apart["steps"]:
            self.watcher.begin(name, read)
            self.result.steps.append(StepResult(name, self.records(name), read, written, rejected))
            self.watcher.end(self.result.steps[-1])
        self.result.sets |= apart["sets"]
        self.result.hashes |= apart["hashes"]
        self.client.counters.hits += apart["hits"]


def build_data(
    config: BuildConfig,
    *,
    watcher: Watcher | None = None,
    counters: Counters | None = None,
    on_wait: Callable[..., Any] | None = None,
) -> BuildResult:
    """Build the data sets of both stages; everything received is in the cache whatever happens on the way."""
    prompts = load_prompts(find_shipped("prompts", config.prompts))
    check_folder(Path(config.out))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_rare_collection())
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


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Look for cycles rarely: records live for one turn of a loop and make none, and looking costs a tenth of a replay."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def run(build: Build) -> None:
    """Run the steps of both stages and write their training sets; a replay runs the two stages side by side."""
    config = build.config
    (build.out / "manifest.json").unlink(missing_ok=True)
    build.result.steps.append(take_in(config.data, config.limit, build.out, build.watcher))
    build.step(augment.extract(build.prompts["extract"], config.seed, config.attempts), "items")
    if config.backend != "replay":
        _stage_one(build)
        _stage_two(build)
    else:
        apart = side_by_side(lambda: _stage_one(build), lambda: _apart(build, _stage_two))
        if apart is None:
            _stage_two(build)
        else:
            build.take(apart)
    write_json(build.out / "sets" / "dataset_info.json", dataset_info(config.aspects))
    _remove_stale(build)
    _write_manifest(build)


def _stage_one(build: Build) -> None:
    """Fine-grained knowledge augmentation: choose the difficult facts, rewrite; the sets of single answers."""
    prompts, seed, attempts = build.prompts, build.config.seed, build.config.attempts
    _choose(build)
    build.step(augment.rewrite_question(prompts["rewrite-question"], seed, attempts), "choose")
    build.step(augment.rewrite_answer(prompts["rewrite-answer"], seed, attempts), "rewrite-question")
    build.wrote(write_answers(build.out))


def _stage_two(build: Build) -> None:
    """Coarse-grained knowledge comparison: a better answer and the worse ones; the sets of pairs."""
    config, prompts, seed, attempts = build.config, build.prompts, build.config.seed, build.config.attempts
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
    build.wrote(write_pairs(build.out, {aspect: build.records(step) for aspect, step in worse.items()}))


def _apart(build: Build, stage: Callable[[Build], None]) -> Record:
    """In a copy of this process: run a stage on a connection of its own and say what it did."""
    build.client.cache.reopen()
    build.watcher = Watcher()
    build.result = BuildResult()
    hits = build.client.counters.hits
    stage(build)
    made = [[step.name, step.read, step.written, step.rejected] for step in build.result.steps]
    hits = build.client.counters.hits - hits
    return {"steps": made, "sets": build.result.sets, "hashes": build.result.hashes, "hits": hits}


def _remove_stale(build: Build) -> None:
    """Remove what an earlier run into this folder left of steps and sets that this one does not have."""
    for path in (build.out / "sets").iterdir():
        if path.name not in build.result.hashes and path.name != "dataset_info.json":
            path.unlink()
    optional = {"score", *compare.ASPECTS.values(), *(f"rephrase-{step}" for step in compare.ASPECTS.values())}
    for name in optional - {step.name for step in build.result.steps}:
        shutil.rmtree(build.out / name, ignore_errors=True)


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
    hashes = build.result.hashes | {"dataset_info.json": file_hash(build.out / "sets" / "dataset_info.json")}
    manifest = {
        "kind": "build-data",
        "config": settings(build.config),
        "inputs": input_hashes(build.config.data),
        "prompts": {name: prompt.hash for name, prompt in sorted(build.prompts.items())},
        "steps": {s.name: {"read": s.read, "written": s.written, "rejected": s.rejected} for s in steps},
        "sets": build.result.sets,
        "outputs": {f"sets/{name}": hashes[name] for name in sorted(hashes)},
    }
    write_json(build.out / "manifest.json", manifest)
