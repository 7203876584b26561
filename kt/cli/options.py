"""Options that several commands share: the same name, meaning and help everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import orjson

cache_option = click.option(
    "--cache",
    type=click.Path(dir_okay=False),
    envvar="KT_CACHE",
    default="cache/completions.sqlite",
    show_default=True,
    help="The file that keeps completions (or KT_CACHE).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress, no last line.")
model_option = click.option("--model", metavar="NAME|PATH", help="The model's name at the server, or a local path to serve.")
data_option = click.option("--data", multiple=True, metavar="FILE", help="Questions and answers: JSON or JSONL; - is stdin.")
prompts_option = click.option(
    "--prompts", metavar="SET|DIR", help="Prompt set: default, compact, or a folder. [default: default]"
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N items.")
seed_option = click.option("--seed", type=int, metavar="N", help="Seed of every random choice. [default: 42]")


def nested(values: dict[str, Any], section: str, **given: Any) -> None:
    """Let options go before the keys of a config's section; what is no section is left as it is, to be named as wrong."""
    found = {key: value for key, value in given.items() if value is not None}
    inner = values.get(section)
    if found and (inner is None or isinstance(inner, Mapping)):
        values[section] = {**(inner or {}), **found}


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
