"""`kt compare`."""

from __future__ import annotations

import click

from kt.cli import options

COLUMNS = ["method", "against", "number", "items", "mean", "against's mean", "difference", "p", "p adjusted"]


@click.command(short_help="Say whether two runs' or methods' numbers differ by more than chance.")
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("other", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--method", "methods", multiple=True, metavar="NAME[=OTHER]", help="This method of RUN against that one of OTHER."
)
@click.option("--common", is_flag=True, help="Compare the items that both have; else different items are an error.")
@options.seed_option
@options.json_option
def compare(run: str, other: str, methods: tuple[str, ...], common: bool, seed: int | None, as_json: bool) -> None:
    """Compare two evaluations (folders that kt evaluate wrote, or runs with one in them) item by item.

    Every number that both have for each answer: words, metrics, facts, scores. The mean difference with a 95 % bootstrap
    interval, and p of a paired permutation test, adjusted for the number of rows. Methods of the same name are compared
    unless --method says otherwise.

    \b
    For example, a run before and after a change, and two methods of one run:
      kt compare runs/before runs/after
      kt compare runs/x runs/x --method knowtuning=sft
    """
    from kt.significance import compare_runs

    chosen = [_pair(one) for one in methods]
    found = compare_runs(run, other, chosen, common=common, seed=42 if seed is None else seed)
    if as_json:
        options.print_json(found)
        return
    from kt.method_table import as_markdown
    from kt.report_results import Table
    from kt.significance import compared_as_rows

    apart = sum(found["not_shared"].values())
    note = f"{found['items']} items" + (f" ({apart} not in both left out)" if apart else "")
    note += f"; {found['test']}; {found['correction']}; 95 % bootstrap intervals."
    click.echo(as_markdown(Table("compared", "Compared", COLUMNS, compared_as_rows(found), note)))


def _pair(given: str) -> tuple[str, str]:
    name, equals, other = given.partition("=")
    if not name or (equals and not other):
        raise click.UsageError(f"--method {given}: say NAME or NAME=OTHER, for example --method knowtuning=sft")
    return name, other or name
