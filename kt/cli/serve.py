"""`kt serve`."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click

from kt.cli import options


@click.command(short_help="Serve a local model as an OpenAI-compatible endpoint.")
@click.argument("model")
@click.option("--backend", type=click.Choice(["vllm", "llama-cpp"]), default="vllm", show_default=True, help="The engine.")
@click.option("--name", metavar="NAME", help="The name that the model answers to. [default: the folder's or file's]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here; another than loopback needs --api-key-env.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Listen on this port. [default: a free one]")
@click.option(
    "--api-key-env", metavar="VAR", help="The variable that holds the key. [default: a random key, in a private file]"
)
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=PATH", help="A LoRA adapter to serve too (vllm).")
@click.option("--max-model-len", type=int, metavar="N", help="Longest prompt and answer in tokens.")
@click.option("--dtype", default="auto", show_default=True, help="The weights' type in memory (vllm).")
@click.option(
    "--log", "log_path", type=click.Path(dir_okay=False), default="kt-serve.log", show_default=True, help="The engine's log."
)
@options.json_option
def serve(model: str, as_json: bool, api_key_env: str | None, adapters: tuple[str, ...], **given: Any) -> None:
    """Serve MODEL (a Hugging Face folder, or a GGUF file for llama-cpp) until Ctrl-C.

    It listens on this machine only and asks for a key, which is never printed: with a random one, the file that holds it
    is named.

    \b
    For example:
      kt serve ./Qwen3-8B --port 8000
      KT_API_KEY=$(cat KEYFILE) kt build-data --base-url http://127.0.0.1:8000/v1 --model Qwen3-8B ...
    """
    from kt.errors import InputError
    from kt.serving import serve as start

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise InputError(f"--api-key-env {api_key_env}: that variable is not set")
    backend = given.pop("backend")
    with start(backend, model, api_key=key, adapters=_named(adapters), on_wait=_say, **given) as server:
        signal.signal(signal.SIGTERM, _stop)
        with _key_file(server.api_key, api_key_env) as where:
            said = {"base_url": server.base_url, "model": server.model, "engine": server.engine, "key": where}
            if as_json:
                options.print_json(said)
            else:
                click.echo(f"{server.model} answers at {server.base_url} (key in {where}); Ctrl-C stops it")
            while True:
                server.check()
                time.sleep(0.5)


def _named(adapters: tuple[str, ...]) -> dict[str, str]:
    from kt.errors import InputError

    named = {}
    for given in adapters:
        name, _, path = given.partition("=")
        if not name or not path:
            raise InputError(f"--adapter {given}: give NAME=PATH")
        named[name] = path
    return named


def _say(seconds: float, last_line: str) -> None:
    click.echo(f"starting, {seconds:.0f} s: {last_line[:100]}", err=True)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _key_file(key: str, given_in: str | None) -> Iterator[str]:
    """Keep a random key in a file that only this user can read, while the server runs; say where the key is."""
    if given_in:
        yield f"the variable {given_in}"
        return
    with tempfile.NamedTemporaryFile("w", prefix="kt-key-") as file:  # readable by its owner only
        file.write(key)
        file.flush()
        yield file.name
