"""`kt demo`: the generated world, and the tiny models made for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kt.cli import options
from kt.cli.study import study

if TYPE_CHECKING:
    from kt.demo.exam import Marks
    from kt.demo.teacher import Progress


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="One seed, SFT and KnowTuning alone.")
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Another folder than runs/demo.")
@options.json_option
@options.quiet_option
@click.pass_context
def demo(context: click.Context, quick: bool, out: str | None, as_json: bool, quiet: bool) -> None:
    """Show KnowTuning at work in a world of facts that no model knows, with tiny models that live in it.

    Without a command: `kt run configs/demo.yaml`. A tiny teacher builds the data through llama.cpp, a tiny student that has
    read about the world is trained by each method, and the facts of its answers about other towns are counted. No network.

    \b
    For example:
      kt demo
      kt demo --quick --out /tmp/demo
      kt demo questions --size 60 --out world.json
    """
    if context.invoked_subcommand is not None:
        return
    from kt.train_config import read_experiment

    given = {"methods": ["sft", "knowtuning"], "seeds": [1]} if quick else {}
    study(read_experiment("demo.yaml", {**given, "out": out}), as_json, quiet)


@demo.command("questions")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The Alpaca JSON file to write.")
@click.option("--size", type=click.IntRange(1, 8000), default=120, show_default=True, help="How many towns.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of the world.")
def questions(out: str, size: int, seed: int) -> None:
    """Write a world's questions and answers, one for each town.

    \b
    For example:
      kt demo questions --size 60 --out world.json
    """
    from kt.demo.world import make_world, question_items, write_questions

    write_questions(out, question_items(make_world(seed, size)))
    click.echo(f"wrote {size} questions about the world of seed {seed} to {out}", err=True)


@demo.command("train-teacher")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write; OUT.gguf stands beside it.")
@click.option("--part", type=click.IntRange(min=1), metavar="N", help="The N-th recipe of the shipped teacher, not the first.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="End the schedule at this time if steps have not.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the schedule, if not those of the recipe.")
@click.option("--seed", type=int, help="Another seed than the recipe's.")
@click.option("--start", type=click.Path(exists=True, file_okay=False), help="Go on from this folder's weights.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores to use.")
@click.option("--compile", "compiled", is_flag=True, help="Compile first (a C++ compiler, a minute): one third faster.")
@options.quiet_option
def train(
    out: str,
    part: int | None,
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    start: str | None,
    threads: int,
    compiled: bool,
    quiet: bool,
) -> None:
    """Train the tiny teacher from scratch: safetensors and GGUF. An hour on one core gives a good one.

    \b
    For example:
      kt demo train-teacher --out runs/teacher --minutes 60
      kt demo train-teacher --out runs/checks --start runs/teacher --part 6 --minutes 8
    """
    import dataclasses

    from kt.demo.teacher import SHIPPED, Recipe, train_teacher
    from kt.gguf import write_gguf

    if part and part > len(SHIPPED):
        raise click.UsageError(f"--part {part}: the shipped teacher has {len(SHIPPED)} parts")
    given: dict[str, Any] = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    recipe = dataclasses.replace(SHIPPED[part - 1] if part else Recipe(), **given)
    watch = None if quiet else _every(10.0)
    folder = train_teacher(out, recipe, minutes=minutes, threads=threads, compiled=compiled, watch=watch, start=start)
    target = folder.with_name(folder.name + ".gguf")
    write_gguf(folder, target)
    if not quiet:
        click.echo(f"wrote {folder} and {target}; mark it with: kt demo score-teacher {folder}", err=True)


@demo.command("train-student")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@click.option("--world", type=int, help="Seed of the world whose documents are read, if not that of the demo.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the schedule, if not those of the recipe.")
@click.option("--seed", type=int, help="Another seed than the recipe's.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores to use.")
@click.option("--compile", "compiled", is_flag=True, help="Compile first (a C++ compiler, a minute): one third faster.")
@options.quiet_option
def train_student(
    out: str, world: int | None, steps: int | None, seed: int | None, threads: int, compiled: bool, quiet: bool
) -> None:
    """Let a tiny student read a world's documents: safetensors, and in training.json what it remembers. Ten minutes.

    \b
    For example:
      kt demo train-student --world 11 --out runs/student --compile
    """
    import dataclasses

    from kt.demo.student import Reading, train_and_examine

    given: dict[str, Any] = {"world": world, "steps": steps, "seed": seed}
    reading = dataclasses.replace(Reading(), **{name: value for name, value in given.items() if value is not None})
    said = train_and_examine(out, reading, threads=threads, compiled=compiled, watch=None if quiet else _every(10.0))
    if not quiet:
        for times, found in said["recall by mentions"].items():
            click.echo(f"facts mentioned {times} times: {found['right']} of {found['asked']} completed rightly", err=True)
        click.echo(f"wrote {out}", err=True)


@demo.command("score-teacher")
@click.argument("model", type=click.Path(exists=True))
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True, help="Questions of each task.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the examination.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores to use.")
@options.json_option
def score(model: str, count: int, seed: int, threads: int, as_json: bool) -> None:
    """Mark MODEL (a Hugging Face folder or a GGUF file) on towns never seen: lines exactly right, task by task.

    \b
    For example:
      kt demo score-teacher runs/teacher --count 500
    """
    from kt.demo.exam import examine, model_at

    marks = examine(model_at(model, threads), seed=seed, count=count)
    if as_json:
        options.print_json({task: _row(found) for task, found in marks.items()})
        return
    click.echo(f"{'task':18}{'lines':>8}{'right':>8}{'share':>8}{'whole answers right':>22}")
    for task, found in marks.items():
        whole = f"{found.whole} of {found.answers}"
        click.echo(f"{task:18}{found.lines:8}{found.right:8}{found.share:8.1%}{whole:>22}")


@demo.command("count-facts")
@click.argument("model", type=click.Path(exists=True))
@click.option("--count", type=click.IntRange(min=1), default=40, show_default=True, help="Answers, of 3 to 7 facts each.")
@click.option("--seed", type=int, default=11, show_default=True, help="Seed of the world.")
@click.option("--evidence", type=click.Choice(["gold", "documents"]), default="gold", show_default=True, help="Check against.")
@click.option("--out", required=True, type=click.Path(file_okay=False), metavar="DIR", help="A folder for the evaluation.")
@options.json_option
def count_facts(model: str, count: int, seed: int, evidence: Any, out: str, as_json: bool) -> None:
    """Have `kt evaluate` count facts with MODEL as judge (a teacher's folder or GGUF file), and compare with the oracle.

    A third of the answers' facts is wrong. The error rate counts, for each fact, those missed, invented and misjudged.

    \b
    For example:
      kt demo count-facts kt/demo/weights/teacher --count 100 --out runs/count-facts
    """
    import dataclasses

    from kt.demo.fact_counts import measure

    found = measure(model, out, count=count, seed=seed, evidence=evidence)
    if as_json:
        options.print_json({**dataclasses.asdict(found), "rate": round(found.rate, 6), "off": round(found.off, 6)})
        return
    click.echo(f"the oracle: {found.correct} correct, {found.wrong} wrong, in {found.answers} answers")
    click.echo(f"kt evaluate: {found.counted_correct} correct, {found.counted_incorrect} incorrect")
    said = f"{found.missed} missed, {found.invented} invented, {found.misjudged} misjudged, {found.unchecked} unchecked"
    click.echo(f"{said}: an error rate of {found.rate:.1%}")


def _row(marks: Marks) -> dict[str, Any]:
    share = round(marks.share, 4)
    return {"lines": marks.lines, "right": marks.right, "share": share, "answers": marks.answers, "whole": marks.whole}


def _every(seconds: float) -> Callable[[Progress], None]:
    """Return a watcher that prints a line now and then, the loss averaged since the last."""
    losses: list[float] = []
    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        losses.append(progress.loss)
        if time.monotonic() - last < seconds and progress.step < progress.steps:
            return
        mean, speed = sum(losses) / len(losses), progress.tokens / progress.seconds
        click.echo(f"step {progress.step} of {progress.steps}, loss {mean:.3f}, {speed:,.0f} tokens/s", err=True)
        losses.clear()
        last = time.monotonic()

    return watch
