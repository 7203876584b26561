"""`kt annotate`."""

from __future__ import annotations

import secrets
from typing import Any

import click

from kt.cli import options


@click.command(short_help="Judge two methods' answers by hand, blind, in a page on this machine.")
@click.option("--answers", multiple=True, metavar="NAME=DIR", help="A method's answers (records.jsonl); give two.")
@options.data_option
@click.option("--out", required=True, type=click.Path(file_okay=False), metavar="DIR", help="The study's folder.")
@click.option("--annotator", metavar="NAME", help="Who judges. [default: the page asks]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Listen on this port. [default: a free one]")
@click.option("--no-token", is_flag=True, help="A plain URL, open to every user of this machine.")
@click.option("--show-gold", is_flag=True, help="Offer the gold answer to whoever asks for it on the page.")
@options.limit_option
@options.seed_option
@click.option("--export", "exports", multiple=True, metavar="FILE", help="Write the judgements (.jsonl, .csv) and end.")
@click.option("--agreement", is_flag=True, help="Count the judgements, say how far annotators agree, and end.")
@click.option("--judged", type=click.Path(file_okay=False), metavar="DIR", help="And with the judges of this kt evaluate.")
@options.json_option
@options.quiet_option
def annotate(
    out: str, exports: tuple[str, ...], agreement: bool, judged: str | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Judge two methods' answers by hand, blind: completeness, factuality and logicality, by mouse, keyboard or screen reader.

    Every judgement is on the disk before the page goes on. Stop with Ctrl-C; the same --out goes on where you were, and
    several people may judge in one study, each under a name. Nothing is loaded from outside, nothing leaves this machine.

    \b
    For example:
      kt annotate --answers kt=runs/x/generate/knowtuning --answers sft=runs/x/generate/sft --data test.json --out runs/x/human
      kt annotate --out runs/x/human --agreement --judged runs/x/evaluation
      kt annotate --out runs/x/human --export judgements.csv
    """
    study = _open(out, given)
    try:
        if exports or agreement or judged:
            _write_exports(study, exports, quiet or as_json)
            if agreement or judged:
                _write_agreement(study, judged, as_json)
        else:
            _serve(study, given, as_json)
            _last_line(study, quiet)
    finally:
        study.close()


def _open(out: str, given: dict[str, Any]) -> Any:
    from kt.annotate import Study, check_name, start_study

    if given["annotator"]:
        check_name(given["annotator"])
    if not given["answers"]:
        return Study(out)
    if not given["data"]:
        raise click.UsageError("Missing option '--data': the test items that the answers belong to.")
    seed = 42 if given["seed"] is None else given["seed"]
    return start_study(out, _named(given["answers"]), given["data"], seed, given["limit"])


def _named(answers: tuple[str, ...]) -> dict[str, str]:
    named: dict[str, str] = {}
    for one in answers:
        name, _, place = one.partition("=")
        if not name or not place or name in named:
            raise click.UsageError(f"--answers {one}: give NAME=DIR, each name once")
        named[name] = place
    return named


def _serve(study: Any, given: dict[str, Any], as_json: bool) -> None:
    from kt.annotate_page import Page, listen, run

    token = secrets.token_urlsafe(24)
    page = Page(study, token, given["annotator"], show_gold=given["show_gold"], open_page=given["no_token"])
    listener = listen(given["port"])
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/" + ("" if given["no_token"] else f"#{token}")
    if as_json:
        options.print_json({"url": url, "items": len(study.tasks), "out": str(study.out)})
    else:
        click.echo(f"{len(study.tasks)} items to judge at {url} (Ctrl-C stops; every judgement is kept)")
    run(page, listener)


def _write_exports(study: Any, exports: tuple[str, ...], quiet: bool) -> None:
    from kt.annotate import export

    for path in exports:
        count = export(study, path)
        if not quiet:
            click.echo(f"wrote {count} judgements to {path}")


def _write_agreement(study: Any, judged: str | None, as_json: bool) -> None:
    from kt.annotate_agreement import write_agreement

    rows = write_agreement(study, judged)
    if as_json:
        options.print_json(rows)
        return
    for row in rows:
        _print_row(row)


def _print_row(row: dict[str, Any]) -> None:
    click.echo(f"{row['criterion']}: {row['one']} against {row['other']}")
    for name, counts in [*row["annotators"].items(), *row["judges"].items()]:
        click.echo(f"  {name}: {counts['win']} wins, {counts['tie']} ties, {counts['lose']} losses")
    if not row["agreement"]:
        click.echo("  agreement needs two annotators, or --judged with an evaluation's folder")
    for found in row["agreement"]:
        click.echo(f"  {' and '.join(found['judges'])}: {_said(found)}")


def _said(found: dict[str, Any]) -> str:
    if found["kappa"] is None:
        return f"{found['units']} items judged by all: too little, or too much alike, to speak of agreement"
    same = f"{found['units']} items judged by all, {found['same']:.1%} alike"
    return f"{same}; Cohen's kappa {found['kappa']:.3f}, Krippendorff's alpha {found['alpha']:.3f}"


def _last_line(study: Any, quiet: bool) -> None:
    from kt.annotate import write_run

    done = write_run(study)
    if not quiet:
        people = ", ".join(done["annotators"]) or "nobody"
        click.echo(f"{done['written']} judgements of {done['items']} items by {people}; {study.out / 'records.jsonl'}")
