"""`kt report`."""

from __future__ import annotations

from pathlib import Path

import click

from kt.cli import options


@click.command(short_help="Write one HTML page about a run, or its tables.")
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="The page. [default: RUN/report.html]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["html", "md", "csv", "json"]),
    default="html",
    show_default=True,
    help="A page, or its tables.",
)
@options.quiet_option
def report(run: str, out: str | None, kind: str, quiet: bool) -> None:
    """Write one page about RUN: its items step by step, charts, tables, cost, provenance.

    The page is a single file that needs no network and no server; it may be mailed, archived and printed. The same run
    gives the same bytes. Tables as md, csv or json go to stdout, or to --out.

    \b
    For example:
      kt report runs/x
      kt report runs/x --format md
    """
    from kt.report import as_csv, as_json, as_markdown, write_page
    from kt.report_data import read_run

    found = read_run(run)
    if kind == "html":
        target = Path(out) if out else Path(run) / "report.html"
        charts = write_page(found, target)
        if not quiet:
            missing = "" if charts or not found.charts else ", without charts (pip install 'kt[report]')"
            click.echo(f"wrote {len(found.items)} items and {len(found.tables)} tables{missing}; {target}")
        return
    if kind == "json":
        import orjson

        text = orjson.dumps(as_json(found.tables), option=orjson.OPT_INDENT_2).decode() + "\n"
    else:
        text = as_markdown(found.tables) if kind == "md" else as_csv(found.tables)
    _write(text, out)


def _write(text: str, out: str | None) -> None:
    from kt.records import atomic_file

    if out is None:
        click.echo(text, nl=False)
        return
    with atomic_file(out) as stream:
        stream.write(text.encode())
