"""A study in a generated world: the same experiment for several seeds, its answers counted by the world's oracle."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import kt
from kt.demo.counting import as_markdown, as_rows, count_answers, difference_rows, mention_rows, summary
from kt.demo.plot import write_plot
from kt.demo.world import World, make_world, question_items, write_questions
from kt.experiment import Say, StageResult, run_experiment
from kt.records import Record, atomic_file, write_json
from kt.report import write_page
from kt.report_data import read_run
from kt.report_results import Cell, Table
from kt.train_config import ExperimentConfig
from kt.train_sections import WorldSection


@dataclass
class Study:
    """What a study found: `results` as they are written, and how long its parts took, in seconds."""

    out: Path
    results: Record
    stages: list[StageResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run_study(config: ExperimentConfig, *, quiet: bool = False, say: Say = lambda _: None) -> Study:
    """Write questions, run the experiment for each seed, count; results.json, .md, .svg and report.html in the folder.

    What is up to date is skipped, as `kt run` skips it. Raises what the stages raise.
    """
    import torch

    assert config.world is not None
    torch.set_num_threads(1)  # models this small gain nothing from more, and wait long for a core that is not free
    clock = _Clock(say)
    out, world = Path(config.out), make_world(config.world.seed, config.world.towns)
    prepared = _prepare(config, config.world, world)
    clock.done("questions")
    counted: dict[int, list[Record]] = {}
    for one in experiments(prepared):
        clock.stages += run_experiment(one, quiet=quiet, say=clock.stage)
        counted[one.seed] = count_answers(one, world)
        clock.done("counting")
    results = {"world": world.seed, **summary(config.methods, counted, config.seed)}
    write_json(out / "results.json", results)
    with atomic_file(out / "results.md") as stream:
        stream.write(as_markdown(results).encode())
    write_plot(results, out / "results.svg")
    clock.done("counting")
    _write_page(out, experiments(prepared)[0], results)
    clock.done("page")
    return Study(out, results, clock.stages, clock.seconds)


def experiments(config: ExperimentConfig) -> list[ExperimentConfig]:
    """Return a study's experiments, one a seed, each with a folder of its own; they share the cache."""
    seeds = config.seeds or [config.seed]
    return [config.model_copy(update={"seed": seed, "out": str(Path(config.out) / f"seed-{seed}")}) for seed in seeds]


class _Clock:
    """Adds up the seconds of each part, and passes on what it hears of stages."""

    def __init__(self, say: Say) -> None:
        self.say, self.last = say, time.monotonic()
        self.stages: list[StageResult] = []
        self.seconds: dict[str, float] = {}

    def done(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now

    def stage(self, result: StageResult) -> None:
        self.done(result.name.split("-")[0].split(" ")[0])
        self.say(result)


# ---- what the experiments start from -----------------------------------------------------------------------------------


def shipped(path: str) -> str:
    """Return a path that exists here, or else in the folder that the package lies in; as it is if in neither."""
    beside = Path(kt.__file__).parents[1] / path
    return path if Path(path).exists() or not beside.exists() else str(beside)


def _prepare(config: ExperimentConfig, towns: WorldSection, world: World) -> ExperimentConfig:
    """Write the questions, and find the package's models wherever it lies."""
    out = Path(config.out)
    names = list(world.entities)
    files = {"train": names[: towns.train], "test": names[towns.train : towns.train + towns.test]}
    for part, chosen in files.items():
        write_questions(out / "questions" / f"{part}.json", question_items(world, chosen))
    build = {"cache": str(out / "cache.sqlite"), **config.build}
    build["model"] = shipped(str(build.get("model", "")))
    data, test = ([str(out / "questions" / f"{part}.json")] for part in files)
    return config.model_copy(update={"model": shipped(config.model), "data": data, "test": test, "build": build})


def _write_page(out: Path, first: ExperimentConfig, results: Record) -> None:
    """Write the report of the first seed's experiment, with the table over all seeds before it."""
    report = read_run(first.out)
    report.title = out.resolve().name
    note = (
        f"Means an answer about {results['towns']} towns, over seeds {', '.join(map(str, results['seeds']))}; ± is the spread."
    )
    tables = []
    for name, title, lines in (
        ("study", "Facts by the oracle, all seeds", as_rows(results)),
        ("study-differences", "Differences from SFT", difference_rows(results)),
        ("study-mentions", "Facts an answer by their mentions in the documents", mention_rows(results)),
    ):
        rows: list[list[Cell]] = [list(line) for line in lines[1:]]
        said = {"study": note, "study-differences": "95 % intervals, paired over towns."}.get(name, "")
        tables.append(Table(name, title, lines[0], rows, said))
    report.tables[:0] = [table for table in tables if table.rows]
    write_page(report, out / "report.html")
