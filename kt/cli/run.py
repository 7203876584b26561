"""`kt run`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from kt.cli import options
from kt.cli.study import say_stage, study


@click.command(short_help="Run a whole experiment, skipping what is up to date.")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="The experiment's folder, not the config's.")
@click.option("--model", metavar="PATH", help="The base model's folder, not the config's.")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Only these methods, not the config's.")
@options.limit_option
@options.seed_option
@click.option("--dry-run", is_flag=True, help="Say what each training needs of a GPU, and run nothing.")
@options.json_option
@options.quiet_option
def run(config: str, methods: tuple[str, ...], dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Run every stage of CONFIG in order: sft, build-data, ka, kc for each method, and the answers to the test questions.

    With a section `evaluate` the answers are measured, and a table of all methods is printed at the end.
    The rivals rlaif and facttune have stages of their own: preferences among answers sampled from sft, and their training.

    What is up to date by its manifest is skipped; whatever was interrupted goes on where it was.

    \b
    For example:
      kt run configs/tiny.yaml
      kt run configs/dolly-7b.yaml --method sft --method knowtuning --method=-KA
    """
    from kt.train_config import read_experiment

    seeds = None if given["seed"] is None else [given["seed"]]
    settings = read_experiment(config, {**given, "methods": list(methods) or None, "seeds": seeds})
    if dry_run:
        _print_plan(settings, as_json)
        return
    if settings.world is not None:
        study(settings, as_json, quiet)
        return
    from kt.experiment import as_table, run_experiment

    results = run_experiment(settings, quiet=quiet, say=lambda _: None if quiet else say_stage(_))
    measured = next((result.folder for result in results if result.name == "evaluate"), None)
    if as_json:
        stages = [{"name": r.name, "out": str(r.folder), "skipped": r.skipped, "about": r.about} for r in results]
        found = {"results": _read_results(measured)} if measured else {}
        options.print_json({"out": settings.out, "stages": stages, **found})
    elif not quiet:
        click.echo(as_table(results))
        if measured:
            _print_table(_read_results(measured))
        new = sum(not result.skipped for result in results)
        click.echo(f"{new} of {len(results)} stages done now, {len(results) - new} up to date; {settings.out}")


def _read_results(folder: Any) -> Any:
    from kt.report_results import read_results

    return read_results(folder)


def _print_table(results: Any) -> None:
    from kt.method_table import as_markdown, method_table

    click.echo(f"\n{as_markdown(method_table(results))}\n")


def _print_plan(settings: Any, as_json: bool) -> None:
    from kt.experiment_settings import check_settings
    from kt.plan import ASSUMED_ITEMS, absent, plan

    check_settings(settings, files=False)
    needs = plan(settings)
    if as_json:
        options.print_json([dataclasses.asdict(need) for need in needs])
        return
    if missing := absent(settings):
        items = settings.limit or ASSUMED_ITEMS
        click.echo(f"{', '.join(missing)}: not here, so {items:,} items of Dolly's length are assumed", err=True)
    for need in needs:
        click.echo(
            f"{need.name:26} {need.rows:7,} rows, {need.tokens:12,} tokens, about {need.memory_gb:5.1f} GB of GPU memory,"
            f" {need.hours:5.2f} h on one H100-class card"
        )
    total = sum(need.hours for need in needs) / settings.processes
    click.echo(f"{len(needs)} trainings, about {total:.1f} h on {settings.processes} card(s); estimates, good to a third or so")
