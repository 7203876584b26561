"""`kt cost`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kt.cli import options


@click.command(short_help="Say what runs and the cache cost: tokens, time, dollars; what a rerun saves.")
@click.argument("runs", nargs=-1, metavar="[RUN...]", type=click.Path(file_okay=False))
@options.cache_option
@click.option(
    "--at", "reference", default="gpt-3.5-turbo", show_default=True, metavar="MODEL", help="Price it as this model too."
)
@options.json_option
@options.quiet_option
def cost(runs: tuple[str, ...], cache: str, reference: str, as_json: bool, quiet: bool) -> None:
    """Say what runs and the cache cost, by step and model: tokens, time, dollars, and what a rerun saves.

    Prices are those of configs/prices.yaml, the working directory's before the shipped one: edit it freely. A model that
    is not in it is your own and costs nothing. "paid" is what was paid when it was asked. Tokens are counted as the model
    that answered counts them.

    \b
    For example:
      kt cost runs/x --cache cache/x.sqlite
      kt cost --cache cache/x.sqlite --at gpt-4o --json
    """
    from kt.cost import report

    different = list({Path(run).resolve(): run for run in runs}.values())
    with _opened(cache, needed=not runs) as opened:
        told = report(different, opened, reference)
    if as_json:
        options.print_json(told)
        return
    for one in told["runs"]:
        _print_table(one["run"], one, reference)
    if told["cache"]:
        _print_table(cache, told["cache"], reference)
    elif not quiet:
        click.echo(f"{cache}: no such cache; give --cache to see what it holds", err=True)
    if not quiet:
        click.echo(_last_line(told))


def _opened(path: str, needed: bool) -> Any:
    """Open the cache to read; nothing where the manifests of runs say enough and there is none."""
    import contextlib

    from kt.cache import Cache

    return Cache(path, read_only=True) if needed or Path(path).exists() else contextlib.nullcontext()


def _print_table(title: str, told: dict[str, Any], reference: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("model", overflow="fold", ratio=1)
    for name in ("answers", "tokens in", "out", "model time", "paid", "at price", f"at {reference}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in [*told["steps"], {"step": "total", "model": "", **told["total"]}]:
        dollars = (_dollars(row[name]) for name in ("paid", "at_price", "at_reference"))
        counts = (f"{row[name]:,}" for name in ("answers", "prompt_tokens", "completion_tokens"))
        seconds = "" if row["seconds"] is None else f"{row['seconds']:,.0f} s"
        table.add_row(row["step"], row["model"], *counts, seconds, *dollars, style="bold" if row["step"] == "total" else None)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160).print(table)


def _dollars(value: float | None) -> str:
    return "" if value is None else f"${value:,.4f}"


def _last_line(told: dict[str, Any]) -> str:
    both = told["runs"] or [told["cache"]]
    reference = sum(one["total"]["at_reference"] or 0 for one in both)
    would = f"with {told['reference']} this would have cost ${reference:,.2f}"
    if not told["runs"]:
        return f"{told['cache']['total']['answers']:,} answers for ${told['cache']['total']['paid']:,.2f}; {would}"
    again = told["saved"]["from_cache"]
    second = f", of which at least {again:,} a second time" if again else ""
    answers = f"{told['saved']['answers']:,} answers"
    if not told["cache"]:
        return f"made of {answers}; {would}"
    return f"a rerun takes {answers} from the cache{second} and sends none; {would}"
