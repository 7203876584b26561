"""`kt train`."""

from __future__ import annotations

from typing import Any

import click

from kt.cli import options


@click.command(short_help="Train one stage of an experiment: sft, ka or kc.")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--stage", type=click.Choice(["sft", "ka", "kc"]), required=True, help="What to train.")
@click.option("--method", metavar="NAME", help="Train the stage as this method does, for example -KCC. [default: knowtuning]")
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="The experiment's folder, not the config's.")
@click.option("--model", metavar="PATH", help="The base model's folder, not the config's.")
@options.seed_option
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="Processes on this host. [default: 1]")
@options.json_option
@options.quiet_option
def train(config: str, stage: str, method: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train SFT, KA or KC with LoRA as CONFIG says; a training that was killed goes on from its last checkpoint.

    Trainer and LoRA settings stand in CONFIG under TRL's and PEFT's own names. The same command again does nothing if
    nothing that the training depends on has changed.

    \b
    For example, the three stages one by one (kt run CONFIG does all of them):
      kt train configs/tiny.yaml --stage sft
      kt build-data configs/tiny.yaml
      kt train configs/tiny.yaml --stage ka
      kt train configs/tiny.yaml --stage kc
    """
    from kt.train_config import METHODS, SFT, read_experiment

    settings = read_experiment(config, given)
    if method is not None and method not in METHODS:
        raise click.UsageError(f"--method {method}: unknown; known methods: {', '.join(METHODS)}")
    known = [SFT, *METHODS["knowtuning"]] if method is None else METHODS[method]
    found = [training for training in known if training.stage == stage]
    if not found:
        raise click.UsageError(f"--method {method} has no stage {stage}")
    from kt.train import train as run

    result = run(settings, found[-1], quiet=quiet)
    if as_json:
        options.print_json(
            {
                "name": result.name,
                "out": str(result.folder),
                "steps": result.steps,
                "rows": result.rows,
                "loss": result.loss,
                "skipped": result.skipped,
            }
        )
    elif not quiet:
        click.echo(last_line(result))


def last_line(result: Any) -> str:
    """Say in one sentence what a training did."""
    if result.skipped:
        return f"{result.name}: up to date, {result.folder}"
    loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
    return f"{result.name}: trained on {result.rows} rows in {result.steps} steps{loss}; {result.folder}"
