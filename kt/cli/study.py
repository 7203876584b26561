"""How `kt run` and `kt demo` run and show a study in a generated world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kt.cli import options

if TYPE_CHECKING:
    from kt.demo.study import Study
    from kt.experiment import StageResult
    from kt.train_config import ExperimentConfig


def study(settings: ExperimentConfig, as_json: bool, quiet: bool) -> None:
    """Run a study and print its tables, or its results as JSON."""
    from kt.demo.study import run_study

    done = run_study(settings, quiet=quiet, say=lambda _: None if quiet else say_stage(_))
    if as_json:
        seconds = {part: round(value, 1) for part, value in done.seconds.items()}
        stages = [{"name": one.name, "out": str(one.folder), "skipped": one.skipped, "about": one.about} for one in done.stages]
        options.print_json({"out": str(done.out), "results": done.results, "seconds": seconds, "stages": stages})
    elif not quiet:
        _show(done)


def say_stage(result: StageResult) -> None:
    """Say on stderr what became of a stage."""
    click.echo(f"{result.name}: {'up to date' if result.skipped else 'done'}, {result.about}", err=True)


def _show(done: Study) -> None:
    from kt.demo.counting import as_rows, difference_rows

    results = done.results
    click.echo(f"\nFacts an answer, counted by the oracle: {results['towns']} towns that no training asked about,")
    click.echo(f"mean ± spread over seeds {', '.join(map(str, results['seeds']))}\n")
    _table(as_rows(results))
    if len(differences := difference_rows(results)) > 1:
        click.echo("\nless SFT, with 95 % intervals paired over towns\n")
        _table(differences)
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in done.seconds.items() if seconds >= 0.5)
    click.echo(f"\n{sum(done.seconds.values()):.0f} s in all: {parts}")
    new = sum(not stage.skipped for stage in done.stages)
    click.echo(f"{new} of {len(done.stages)} stages done now; the page with every step of every item: {done.out}/report.html")


def _table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
