"""`kt cache`: the file that keeps every completion."""

from __future__ import annotations

from typing import Any

import click

from kt.cli import options

model_filter = click.option("--model", metavar="NAME", help="Only this model's.")
prompt_filter = click.option("--prompt", metavar="NAME", help="Only this prompt's.")
status_filter = click.option(
    "--status",
    type=click.Choice(["ok", "empty", "truncated", "refused", "invalid", "too-long"]),
    help="Only answers of this status.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="At most N."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")


@click.group(short_help="Look into, carry, join and check the file that keeps every completion.")
def cache() -> None:
    """Look into, carry, join and check the file that keeps every completion.

    It is one SQLite file of plain tables and JSON text: sqlite-utils, Datasette and the sqlite3 shell read it too.

    \b
    For example:
      kt cache stats --cache cache/x.sqlite
      kt cache merge --cache cache/x.sqlite other.sqlite
    """


def _open(path: str, *, read_only: bool = True) -> Any:
    from kt.cache import Cache

    return Cache(path, read_only=read_only)


@cache.command()
@options.cache_option
@options.json_option
def stats(cache: str, as_json: bool) -> None:
    """Count completions, tokens and dollars by model, prompt and status.

    \b
    For example: kt cache stats --cache cache/x.sqlite --json
    """
    from kt.cache_admin import stats as count

    with _open(cache) as opened:
        found = count(opened)
    if as_json:
        options.print_json(found)
        return
    click.echo(f"{found['file']}: {found['completions']:,} completions, {found['bytes'] / 1e6:.1f} MB")
    for row in found["groups"]:
        tokens = f"{row['prompt_tokens']:,} + {row['completion_tokens']:,} tokens"
        revision = f"@{row['revision']}" if row["revision"] else ""
        click.echo(
            f"  {row['model']}{revision} {row['prompt']} {row['status']}: {row['completions']:,}, {tokens}, ${row['cost']:.4f}"
        )
    if found["conflicts"]:
        click.echo(f"  {found['conflicts']} answers lost a conflict in a merge and are kept in the table conflicts")


@cache.command(name="ls")
@options.cache_option
@model_filter
@prompt_filter
@status_filter
@limit_option
@options.json_option
def list_(cache: str, limit: int, as_json: bool, **filters: str | None) -> None:
    """List the latest completions.

    \b
    For example: kt cache ls --prompt extract --status invalid
    """
    from kt.cache_admin import list_rows

    with _open(cache) as opened:
        _print_summaries(list_rows(opened, limit, **filters), as_json)


@cache.command()
@click.argument("key")
@options.cache_option
def show(key: str, cache: str) -> None:
    """Show one completion whole, by its KEY or the beginning of it.

    \b
    For example: kt cache show 3f13ed12
    """
    from kt.cache_admin import show as find

    with _open(cache) as opened:
        options.print_json(find(opened, key))


@cache.command()
@click.argument("text")
@options.cache_option
@limit_option
@options.json_option
def search(text: str, cache: str, limit: int, as_json: bool) -> None:
    """List the completions whose question or answer holds TEXT.

    \b
    For example: kt cache search "sleep training"
    """
    from kt.cache_admin import search as find

    with _open(cache) as opened:
        _print_summaries(find(opened, text, limit), as_json)


@cache.command()
@click.argument("file", type=click.Path(dir_okay=False))
@options.cache_option
@model_filter
@prompt_filter
@status_filter
def export(file: str, cache: str, **filters: str | None) -> None:
    """Write completions to FILE as JSONL, sorted by key: the same cache gives the same bytes.

    \b
    For example: kt cache export answers.jsonl --model m
    """
    from kt.cache_admin import export as write

    with _open(cache) as opened:
        count = write(opened, file, **filters)
    click.echo(f"wrote {count} completions to {file}")


@cache.command(name="import")
@click.argument("file", type=click.Path(dir_okay=False))
@options.cache_option
@dry_run_option
@options.json_option
def import_(file: str, cache: str, dry_run: bool, as_json: bool) -> None:
    """Take in the completions of a FILE that `kt cache export` wrote.

    \b
    For example: kt cache import answers.jsonl --cache cache/x.sqlite
    """
    from kt.cache_admin import import_jsonl

    with _open(cache, read_only=False) as opened:
        _print_merged(import_jsonl(opened, file, dry_run=dry_run), file, dry_run, as_json)


@cache.command()
@click.argument("others", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@options.cache_option
@dry_run_option
@options.json_option
def merge(others: tuple[str, ...], cache: str, dry_run: bool, as_json: bool) -> None:
    """Take in the completions of other cache FILEs.

    The order does not matter, nor does merging twice. Where two caches answer one request differently, the earlier answer
    is used, the other kept in the table conflicts, and the key reported.

    \b
    For example: kt cache merge --cache cache/x.sqlite usb/cache.sqlite
    """
    from kt.cache_admin import merge as join

    with _open(cache, read_only=False) as opened:
        for other in others:
            with _open(other) as source:
                _print_merged(join(opened, source, dry_run=dry_run), other, dry_run, as_json)


@cache.command()
@options.cache_option
@options.json_option
def verify(cache: str, as_json: bool) -> None:
    """Check the file, every key against its request, and every record. Exit code 1 if something is wrong.

    \b
    For example: kt cache verify --cache cache/x.sqlite
    """
    from kt.cache_admin import verify as check
    from kt.errors import CacheError

    with _open(cache) as opened:
        problems = check(opened)
    if as_json:
        options.print_json({"file": cache, "problems": problems})
    elif problems:
        click.echo("\n".join(problems[:50]))
    else:
        click.echo(f"{cache}: every record is as it was stored")
    if problems:
        raise CacheError(f"{cache}: {len(problems)} problem(s); restore the file from a copy, or prune the records named")


@cache.command()
@options.cache_option
@model_filter
@prompt_filter
@status_filter
@click.option("--before", metavar="DATE", help="Only those made before this date (ISO 8601, UTC).")
@dry_run_option
def prune(cache: str, dry_run: bool, **filters: str | None) -> None:
    """Remove completions by model, prompt, status or age; they would be asked again.

    \b
    For example, to have the local model answer what the fallback answered:
      kt cache prune --model gpt-4o-mini
    """
    from kt.cache_admin import prune as remove

    with _open(cache, read_only=dry_run) as opened:
        count = remove(opened, dry_run=dry_run, **filters)
    click.echo(f"{'would remove' if dry_run else 'removed'} {count} completions")


def _print_summaries(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        options.print_json(rows)
        return
    for row in rows:
        text = " ".join(row["text"].split())
        click.echo(f"{row['key']} {row['status']:9} {row['model']} {row['prompt']} {row['tokens']} tokens: {text}")
    if not rows:
        click.echo("no completion found")


def _print_merged(merged: Any, source: str, dry_run: bool, as_json: bool) -> None:
    if as_json:
        options.print_json({"file": source, "added": merged.added, "same": merged.same, "conflicts": merged.conflicts})
        return
    would = "would add" if dry_run else "added"
    click.echo(f"{source}: {would} {merged.added}, {merged.same} known already, {len(merged.conflicts)} conflicts")
    for key in merged.conflicts[:20]:
        click.echo(f"  {key}: answered differently; the earlier answer is used, see the table conflicts", err=True)
