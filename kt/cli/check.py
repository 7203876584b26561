"""`kt check`."""

from __future__ import annotations

import dataclasses

import click

from kt.cli import options


@click.command(short_help="Check configs, prompts and data without a network.")
@click.argument("configs", nargs=-1, type=click.Path(dir_okay=False))
@options.data_option
@click.option("--test", multiple=True, metavar="FILE", help="Test items, to be looked for in the training data.")
@click.option("--prompts", multiple=True, metavar="SET|DIR", help="A prompt set to check. [default: both shipped sets]")
@options.json_option
def check(
    configs: tuple[str, ...], data: tuple[str, ...], test: tuple[str, ...], prompts: tuple[str, ...], as_json: bool
) -> None:
    """Check configs, prompts and data: what is wrong, and what is suspicious (repeated questions, train/test leaks).

    Exit code 1 if something is wrong; what is only suspicious is said and exits 0.

    \b
    For example: kt check configs/x.yaml --data train.json --test test.json
    """
    from kt.check import check as look
    from kt.errors import InputError

    report = look(configs, prompts or (() if configs or data else ("default", "compact")), data, test)
    if as_json:
        options.print_json(dataclasses.asdict(report))
    else:
        for line in report.looked_at:
            click.echo(f"ok       {line}")
        for line in report.warnings:
            click.echo(f"warning  {line}")
        for line in report.problems:
            click.echo(f"wrong    {line}")
    if report.problems:
        raise InputError(f"{len(report.problems)} problem(s) found; nothing was changed")
