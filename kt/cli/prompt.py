"""`kt prompt`: which prompts there are, and what exactly a model gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import orjson

from kt.errors import InputError, PromptError
from kt.items import read_items, read_raw
from kt.prompts import Message, Prompt, load_prompts
from kt.records import Record

_prompts_option = click.option(
    "--prompts", "where", default="default", show_default=True, metavar="SET|DIR", help="A set of prompts: its name or folder."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def prompt() -> None:
    """Show the prompts that are sent to models.

    \b
    For example: kt prompt show extract --record questions.json:q12
    """


@prompt.command("list")
@_prompts_option
@_json_option
def list_prompts(where: str, as_json: bool) -> None:
    """List the prompts of a set.

    \b
    For example: kt prompt list --prompts compact
    """
    prompts = load_prompts(where).values()
    if as_json:
        _print_json([{"name": p.name, "fields": p.fields, "answer": _answer(p), "hash": p.hash} for p in prompts])
        return
    for p in prompts:
        click.echo(f"{p.name:18}{_answer(p):6}{p.description}  [{', '.join(p.fields)}]")


@prompt.command("show")
@click.argument("name")
@click.option("--record", metavar="FILE[:ID]", help="Fill it with this record (the file's first, without an id).")
@_prompts_option
@_json_option
def show_prompt(name: str, record: str | None, where: str, as_json: bool) -> None:
    """Show a prompt as it is sent, filled with a record of a data file.

    \b
    For example: kt prompt show extract --record questions.json:q12
    """
    prompts = load_prompts(where)
    if name not in prompts:
        raise PromptError(f"{where}: has no prompt {name!r}; it has {', '.join(prompts)}")
    chosen = prompts[name]
    values = find_record(record) if record else {field: _placeholder(field) for field in chosen.fields}
    messages = chosen.render(values)
    if as_json:
        body = {"prompt": name, "hash": chosen.hash, "messages": messages, "schema": chosen.schema, "params": chosen.params}
        _print_json(body)
    else:
        _print_messages(chosen, messages)


def find_record(where: str) -> Record:
    """Return the record that FILE or FILE:ID names: its own fields, and question and answer under these names."""
    path, wanted = _split(where)
    ids = []
    for _, raw in read_raw(path):
        if isinstance(raw, dict) and "facts" in raw and {"question", "id"} <= raw.keys():
            ids.append(str(raw["id"]))
            if wanted in (None, ids[-1]):
                return raw
        else:
            break  # a file of items, which have their ids from the reader
    for read in read_items([path]) if not ids else ():
        if read.item is not None:
            ids.append(read.item["id"])
            if wanted in (None, ids[-1]):
                return read.item
    raise InputError(f"{path}: has no record {wanted!r}; its {len(ids)} ids begin {', '.join(ids[:3]) or '(none)'}")


def _split(where: str) -> tuple[str, str | None]:
    """Cut FILE:ID where the part before a colon is a file, since both may hold colons."""
    if Path(where).is_file():
        return where, None
    parts = where.split(":")
    for count in range(1, len(parts)):
        path = ":".join(parts[:count])
        if Path(path).is_file():
            return path, ":".join(parts[count:])
    raise InputError(f"{where}: no such file; give --record FILE or FILE:ID")


def _answer(p: Prompt) -> str:
    return "json" if p.schema is not None else "text"


def _placeholder(field: str) -> Any:
    return [f"<{field} 1>", f"<{field} 2>"] if field == "facts" else f"<{field}>"


def _print_json(value: Any) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _print_messages(chosen: Prompt, messages: list[Message]) -> None:
    for message in messages:
        click.secho(f"[{message['role']}]", bold=True)
        click.echo(message["content"] + "\n")
    if chosen.schema is not None:
        click.secho("[schema]", bold=True)
        click.echo(orjson.dumps(chosen.schema).decode() + "\n")
    settings = ", ".join(f"{name} {value}" for name, value in chosen.params.items())
    click.echo(f"{chosen.source}: {len(messages)} messages; {settings}; hash {chosen.hash[:12]}")
