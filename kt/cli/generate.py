"""`kt generate`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from kt.cli import options


@click.command(short_help="Answer questions with a base model and any of its adapters.")
@click.option("--model", metavar="PATH", required=True, help="The base model's folder.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter and the name of its answers' folder; `base=` is the base alone. [default: base=]",
)
@options.data_option
@click.option("--out", type=click.Path(file_okay=False), required=True, metavar="DIR", help="A folder for each name goes here.")
@options.cache_option
@click.option(
    "--backend",
    type=click.Choice(["transformers", "vllm", "replay"]),
    help="In this process, by a vLLM server, or from the cache alone. [default: transformers]",
)
@click.option("--base-url", multiple=True, metavar="URL", help="A running vLLM that serves the adapters under these names.")
@click.option("--revision", metavar="NAME", help="Which weights these are, where they are not on this machine.")
@click.option("--api-key-env", metavar="VAR", help="The variable that holds the server's key. [default: KT_API_KEY]")
@click.option("--offline", is_flag=True, default=None, help="Refuse every address but this machine's.")
@click.option("--template", type=click.Choice(["alpaca", "chat"]), help="As in training. [default: alpaca]")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer. [default: 512]")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0: the likeliest token each time. [default: 0]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Draw from this share. [default: 1]")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Answers drawn to each question. [default: 1]")
@options.seed_option
@options.limit_option
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Answers at once. [default: 8; 64 on a GPU]")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="auto: bfloat16 on a GPU. [default: auto]"
)
@click.option("--workers", type=click.IntRange(1, 4096), metavar="N", help="Questions at a server at once. [default: 64]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Longest wait for a server's answer. [default: 600]")
@click.option("--max-model-len", type=int, metavar="N", help="Context of a server that kt starts.")
@options.json_option
@options.quiet_option
def generate(as_json: bool, quiet: bool, **given: Any) -> None:
    """Answer the questions of a file with a base model and any of its adapters, for `kt evaluate` to compare.

    The prompt is the one of the training. Answers are kept in the cache under the weights that gave them: the same
    command again loads no model. With --backend vllm one server answers for all adapters.

    \b
    For example:
      kt generate --model ./Llama-2-7b-hf --adapter sft=runs/x/sft --adapter knowtuning=runs/x/kc \\
          --data test.json --out runs/x/answers
    writes runs/x/answers/sft/records.jsonl and runs/x/answers/knowtuning/records.jsonl.
    """
    settings = _settings(given)
    result = _generate(settings, quiet)
    if as_json:
        counts = ((s.name, {"read": s.read, "written": s.written, "rejected": s.rejected}) for s in result.steps)
        adapters = {name: {**count, "cut": result.cut[name]} for name, count in counts}
        counters = dataclasses.asdict(result.counters)
        options.print_json({"out": settings.out, "items": result.items.written, "adapters": adapters, "counters": counters})
    elif not quiet:
        click.echo(last_line(result, settings.out))


def _settings(given: dict[str, Any]) -> Any:
    from kt.config import GenerateConfig, validate

    if not given["data"]:
        raise click.UsageError("Missing option '--data'.")
    adapters: dict[str, str | None] = {}
    for one in given.pop("adapters"):
        name, equals, path = one.partition("=")
        if not (name and equals) or name in adapters:
            raise click.UsageError(f"--adapter {one}: give NAME=PATH, each name once")
        adapters[name] = path or None
    if length := given.pop("max_model_len"):
        given["server"] = {"max_model_len": length}
    values = {**given, "data": list(given["data"]), "base_url": list(given["base_url"]), "adapters": adapters}
    if values["base_url"] and not values["backend"]:
        values["backend"] = "vllm"
    return validate(GenerateConfig, {key: value for key, value in values.items() if value is not None}, "options")


def _generate(settings: Any, quiet: bool) -> Any:
    from kt.generation import generate as run

    if quiet:
        return run(settings)
    from kt.client import Counters
    from kt.progress import Display

    counters = Counters()
    with Display(counters) as display:
        return run(settings, watcher=display, counters=counters, on_wait=display.waiting)


def last_line(result: Any, out: str) -> str:
    """Say in one sentence what a generation did."""
    counters, written, cut = result.counters, sum(step.written for step in result.steps), sum(result.cut.values())
    names = ", ".join(step.name for step in result.steps)
    ends = f" ({cut} cut at --max-tokens)" if cut else ""
    wrote = f"wrote {written} answers{ends} of {names}, rejected {result.rejected}"
    return f"read {result.items.read} questions, {wrote}; {counters.sent} asked, {counters.hits} from the cache; {out}"
