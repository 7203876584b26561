"""`kt doctor`."""

from __future__ import annotations

import click

from kt.cli import options


@click.command(short_help="Say what this machine can run, and what is missing.")
@click.argument("models", nargs=-1, type=click.Path(file_okay=False))
@options.json_option
def doctor(models: tuple[str, ...], as_json: bool) -> None:
    """Say what this machine can run: engines, devices, versions, offline switches, models under the folders MODELS.

    What is missing is named with the command that installs it. Nothing is fetched or sent.

    \b
    For example: kt doctor ./models
    """
    from kt.doctor import as_dicts, examine

    findings = examine(models)
    if as_json:
        options.print_json(as_dicts(findings))
        return
    for finding in findings:
        click.echo(f"{finding.topic:8} {finding.name:26} {finding.value}")
        if finding.fix:
            click.echo(f"{'':8} {'':26} → {finding.fix}")
