"""`kt build-data`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from kt.cli import options


@click.command(name="build-data", short_help="Build the training sets of both stages from a question-answer file.")
@click.argument("config", required=False, type=click.Path(dir_okay=False))
@options.data_option
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="The run's folder, for example runs/x.")
@click.option(
    "--cache", type=click.Path(dir_okay=False), envvar="KT_CACHE", help="Keeps completions. [default: cache/completions.sqlite]"
)
@click.option("--backend", type=click.Choice(["vllm", "llama-cpp", "openai", "replay"]), help="Who writes. [default: vllm]")
@options.model_option
@click.option("--revision", metavar="NAME", help="Which weights the model's name stands for, if the server's change.")
@click.option("--base-url", multiple=True, metavar="URL", help="A running server, ending in /v1; several share the load.")
@click.option("--api-key-env", metavar="VAR", help="The variable that holds the server's key. [default: KT_API_KEY]")
@click.option("--fallback", type=click.Choice(["openai"]), help="Ask this when the backend cannot answer (off unless given).")
@click.option("--fallback-model", metavar="NAME", help="The fallback's model. [default: gpt-4o-mini]")
@click.option("--fallback-url", multiple=True, metavar="URL", help="The fallback's address. [default: the real API]")
@click.option("--offline", is_flag=True, default=None, help="Refuse every address but this machine's; no fallback.")
@options.prompts_option
@options.limit_option
@click.option("--workers", type=click.IntRange(1, 4096), metavar="N", help="Records under way at once. [default: 64]")
@options.seed_option
@click.option("--difficulty", type=click.Choice(["ppl", "random", "all"]), help="Which facts are difficult. [default: ppl]")
@click.option("--scorer", type=click.Path(), metavar="PATH", help="Local model for perplexity. [default: the served model]")
@click.option("--adapter", type=click.Path(), metavar="PATH", help="LoRA adapter on the scorer.")
@click.option("--aspect", "aspects", multiple=True, help="Only these comparisons. [default: all three]")
@click.option(
    "--rejected", type=click.Choice(["concatenate", "rephrase"]), help="How worse answers are put. [default: concatenate]"
)
@click.option("--attempts", type=click.IntRange(min=1), metavar="N", help="Tries for a usable answer. [default: 3]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Longest wait for one answer. [default: 600]")
@click.option("--retries", type=click.IntRange(min=0), metavar="N", help="Repeats after a 5xx. [default: 3]")
@click.option("--max-cost", type=float, metavar="DOLLARS", help="Stop before this is passed.")
@click.option("--max-model-len", type=int, metavar="N", help="Context of a server that kt starts.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked and what it would cost; ask nothing.")
@options.json_option
@options.quiet_option
def build_data(config: str | None, dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Build the training sets of both stages from questions and answers.

    Every completion is kept in the cache: the same command again is free, and --backend replay needs no model at all.
    CONFIG is a YAML file with the same keys; options go before it.

    \b
    For example, with a vLLM server on this machine:
      kt build-data --backend vllm --base-url http://127.0.0.1:8000/v1 --model m \\
          --data qa.json --difficulty all --out runs/x
    or one that kt starts and stops by itself, offline:
      kt build-data --backend vllm --model ./Qwen3-8B --data qa.json --out runs/x --offline
    """
    settings = read_settings(config, given)
    if dry_run:
        from kt.cli.estimate import print_estimate
        from kt.estimate import estimate

        print_estimate(estimate(settings), as_json)
        return
    result = _build(settings, quiet)
    if as_json:
        steps = {s.name: {"read": s.read, "written": s.written, "rejected": s.rejected} for s in result.steps}
        options.print_json(
            {"out": settings.out, "steps": steps, "sets": result.sets, "counters": dataclasses.asdict(result.counters)}
        )
    elif not quiet:
        click.echo(_last_line(result, settings.out))


def _build(settings: Any, quiet: bool) -> Any:
    from kt.build import build_data as build

    if quiet:
        return build(settings)
    from kt.client import Counters
    from kt.progress import Display

    counters = Counters()
    with Display(counters) as display:
        return build(settings, watcher=display, counters=counters, on_wait=display.waiting)


def read_settings(config: str | None, given: dict[str, Any]) -> Any:
    """Make the build's settings of a config file and the options given, which go before it."""
    from kt.config import BuildConfig, find_shipped, read_yaml, validate

    values: dict[str, Any] = read_yaml(find_shipped("configs", config)) if config else {}
    if isinstance(values.get("build"), dict):  # a whole experiment: its data section
        from kt.train_config import build_settings

        values = build_settings(values)
    plain = {key: given[key] for key in ("out", "cache", "backend", "model", "revision", "api_key_env", "offline")}
    plain |= {key: given[key] for key in ("prompts", "limit", "workers", "seed", "rejected", "attempts")}
    plain |= {key: given[key] for key in ("timeout", "retries", "max_cost")}
    plain |= {key: list(given[key]) or None for key in ("data", "base_url", "aspects")}
    values.update({key: value for key, value in plain.items() if value is not None})
    options.nested(values, "difficulty", mode=given["difficulty"], scorer=given["scorer"], adapter=given["adapter"])
    options.nested(values, "server", max_model_len=given["max_model_len"])
    options.nested(values, "fallback", model=given["fallback_model"], base_url=list(given["fallback_url"]) or None)
    if given["fallback"]:
        values["fallback"] = values.get("fallback") or {}
    elif values.get("fallback") and not config:
        raise click.UsageError("--fallback-model and --fallback-url need --fallback openai")
    for name in ("data", "out", "model"):
        if not values.get(name):
            raise click.UsageError(f"Missing option '--{name}' (or the key {name} in a config).")
    return validate(BuildConfig, values, config or "options")


def _last_line(result: Any, out: str) -> str:
    counters, sets = result.counters, result.sets
    written = f"{sets['ka']} rows for stage I, {sets['kc']} pairs for stage II"
    cost = f" for ${counters.cost:.4f}" if counters.cost else ""
    fallback = f" ({counters.fallback} by the fallback)" if counters.fallback else ""
    calls = f"{counters.sent} calls sent{fallback}{cost}, {counters.hits} answers from the cache"
    return f"read {result.read} items, wrote {written}, rejected {result.rejected}; {calls}; {Path(out) / 'sets'}"
