"""`kt generate`: the answers of a base model with any of several adapters to a file of questions, all through the cache."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt.backends import REVISION_LENGTH, StartedEndpoint, model_name, only_revision
from kt.cache import Cache
from kt.client import Backend, Client, Counters
from kt.config import GenerateConfig
from kt.endpoint import Endpoint
from kt.errors import InputError
from kt.generators import LocalGenerator, ServedGenerator
from kt.intake import take_in
from kt.offline import check_addresses, go_offline
from kt.pipeline import Step, StepResult, Watcher, run_step
from kt.records import Record, check_folder, read_jsonl
from kt.request import Completion, Request, plain_params
from kt.template import render_prompt
from kt.weights import check_base, combined_fingerprint, trained_template

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
LOCAL_WAITING = 512
"""Questions handed to a local model at once, to be sorted by length."""


@dataclass
class GenerateResult:
    """What a generation did: the items read, what each adapter wrote, how many of its answers were cut, and who was asked."""

    items: StepResult
    steps: list[StepResult] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)

    @property
    def rejected(self) -> int:
        """Questions without an answer over all adapters, and items that could not be used."""
        return self.items.rejected + sum(step.rejected for step in self.steps)


def answer(name: str, template: str, params: Mapping[str, Any], settings: Mapping[str, Any], samples: int = 1) -> Step:
    """Questions → {"id", "question", "answer", "finish_reason"}: one request each, asked once.

    `params` are max_tokens, temperature, top_p and, where something is drawn, seed. An answer cut at max_tokens
    (finish_reason "length") or empty is the model's answer all the same. Of several samples each is a record of its own,
    "ID/sample-1" with "item": ID; each has the next seed, so that a server draws it anew, and fewer samples are the first
    of more.
    """

    def requests(record: Record) -> list[Request]:
        if template == "chat":  # the model's own tokenizer renders it; its fingerprint is in the key
            asked = {"template": "chat", "question": record["question"]}
        else:
            asked = {"prompt": render_prompt(record["question"], template)}
        first = Request("generate", {**asked, **params}, prompt="generate")
        drawn = ({**first.body, "seed": params["seed"] + number} for number in range(1, samples))
        return [first, *(first._replace(body=body, sample=number) for number, body in enumerate(drawn, 1))]

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        made = []
        for number, said in enumerate(completions, 1):
            about = {"id": record["id"]} if samples == 1 else {"id": f"{record['id']}/sample-{number}", "item": record["id"]}
            text = {"answer": said.text.strip(), "finish_reason": said.finish_reason}
            made.append({**about, "question": record["question"], **text})
        return made

    several = {"samples": samples} if samples > 1 else {}
    return Step(name, requests, parse, {"template": template, **params, **several, **settings}, attempts=1)


def generate(
    config: GenerateConfig,
    *,
    watcher: Watcher | None = None,
    counters: Counters | None = None,
    on_wait: Callable[..., Any] | None = None,
) -> GenerateResult:
    """Answer the questions with each adapter into OUT/NAME/records.jsonl; what the cache holds is not asked again.

    A model is loaded, or a server started, at the first question that the cache cannot answer.
    """
    if config.offline:
        go_offline()
        check_addresses(config.base_url, config.inside)
    out, watcher = Path(config.out), watcher or Watcher()
    check_folder(out)
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(Cache(config.cache, read_only=config.backend == "replay"))
        backends = _backends(config, cache, stack, on_wait)
        items = take_in(config.data, config.limit, out, watcher, answered=False)
        result = GenerateResult(items, counters=counters or Counters())
        client = stack.enter_context(Client(cache, [], config.workers, None, result.counters))
        for name, backend in backends.items():
            done = _answers(config, client, name, backend, result.items, watcher)
            result.steps.append(done)
            result.cut[name] = sum(record["finish_reason"] == "length" for record in read_jsonl(done.records))
    return result


def _answers(
    config: GenerateConfig, client: Client, name: str, backend: Backend, items: StepResult, watcher: Watcher
) -> StepResult:
    """Run one adapter's step; its model is let go at the end, before the next is loaded."""
    known = {"model": backend.model, "revision": backend.revision}
    step = answer(name, config.template, params(config), known, config.samples)
    workers = max(LOCAL_WAITING, config.workers) if isinstance(backend, LocalGenerator) else config.workers
    with client.beside([backend], workers) as own:
        return run_step(
            step,
            lambda: read_jsonl(items.records),
            [*(Path(path) for path in config.data if path != "-"), items.records],
            Path(config.out) / name,
            own,
            replay=config.backend == "replay",
            total=items.written,
            watcher=watcher,
        )


def params(config: GenerateConfig) -> dict[str, Any]:
    """Return what is asked for beside the prompt; the seed only where something is drawn, since it changes nothing else."""
    drawn = {"top_p": config.top_p, "seed": config.seed} if config.temperature else {}
    return plain_params({"max_tokens": config.max_tokens, "temperature": config.temperature, **drawn})


# ---- who is asked ----------------------------------------------------------------------------------------------------


def _backends(
    config: GenerateConfig, cache: Cache, stack: contextlib.ExitStack, on_wait: Callable[..., Any] | None
) -> dict[str, Backend]:
    """Return who answers for each adapter."""
    _check_local(config)
    if config.backend != "vllm":
        return {name: _local(config, cache, adapter) for name, adapter in config.named.items()}
    server = _server(config, on_wait)
    if isinstance(server, StartedEndpoint):
        stack.callback(server.stop)
    return {name: _served(config, name, adapter, server) for name, adapter in config.named.items()}


def _check_local(config: GenerateConfig) -> None:
    """Say before the first call which folder is missing or does not fit; a replay and a remote server need none."""
    if config.backend == "replay" or (config.base_url and not Path(config.model).exists()):
        return
    if not (Path(config.model) / "config.json").is_file():
        raise InputError(f"--model {config.model}: no model folder on this machine; its weights are part of every answer's key")
    for name, adapter in config.named.items():
        if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
            raise InputError(f"--adapter {name}={adapter}: no adapter_config.json there; train one with `kt train`")
        if adapter is not None:
            check_base(config.model, adapter)
        trained = trained_template(adapter or config.model)
        if trained not in (None, config.template):
            raise InputError(
                f"{adapter or config.model} was trained with the template {trained}, not {config.template}:"
                f" give --template {trained}"
            )


def _identity(config: GenerateConfig, adapter: str | None) -> tuple[str, str]:
    """Return the name and the revision that stand in keys: as LocalScorer's, with the dtype if it was asked for."""
    name = "+".join(model_name(path) if Path(path).exists() else Path(path).name for path in (config.model, adapter) if path)
    revision = config.revision
    if not revision and Path(config.model).exists() and (adapter is None or Path(adapter).exists()):
        revision = combined_fingerprint(config.model, adapter)[:REVISION_LENGTH]
    dtype = f"-{config.dtype}" if revision and config.dtype != "auto" else ""
    return name, revision + dtype


def _local(config: GenerateConfig, cache: Cache, adapter: str | None) -> LocalGenerator:
    name, revision = _identity(config, adapter)
    if not revision:  # a replay where the weights are not
        revision = only_revision(cache, name, "generate", "--revision")
    made = LocalGenerator(config.model, adapter, name, revision, engine_version=_version("transformers"))
    made.batch_size, made.dtype = config.batch_size, config.dtype
    return made


def _served(config: GenerateConfig, name: str, adapter: str | None, server: StartedEndpoint | Endpoint) -> ServedGenerator:
    known, revision = _identity(config, adapter)
    path = config.model if Path(config.model).exists() else None
    if path is None and config.template == "chat":
        raise InputError("template chat is written by the model's tokenizer: give --model PATH, or --template alpaca")
    started = isinstance(server, StartedEndpoint)
    served_as = server.model if adapter is None else _served_name(name) if started else name
    return ServedGenerator(server, served_as, known, revision, path, weights_known=started)


def _served_name(name: str) -> str:
    """Name an adapter at a server that kt starts so that it is neither an option nor the base."""
    return f"adapter-{name}"


def _server(config: GenerateConfig, on_wait: Callable[..., Any] | None) -> StartedEndpoint | Endpoint:
    name = model_name(config.model)
    if config.base_url:
        return Endpoint(
            "vllm",
            list(config.base_url),
            name,
            config.revision,
            api_key=os.environ.get(config.api_key_env, ""),
            timeout=config.timeout,
            retries=config.retries,
            engine="vllm",
            asked_for_key=config.api_key_env,
        )

    def start() -> Any:
        from kt.serving import serve

        adapters = {_served_name(each): path for each, path in config.named.items() if path is not None}
        ranks = ["--max-lora-rank", str(_rank(adapters))] if adapters else []
        return serve(
            "vllm",
            config.model,
            name=name,
            max_model_len=config.server.max_model_len,
            dtype=config.server.dtype,
            adapters=adapters,
            extra_args=["--generation-config", "vllm", *ranks, *config.server.extra_args],
            log_path=Path(config.out) / "engine.log",
            on_wait=on_wait,
        )

    return StartedEndpoint("vllm", config.model, name, "", start, config.timeout, config.retries)


def _rank(adapters: Mapping[str, str]) -> int:
    """Return the least rank that vLLM can be told and that all adapters fit in."""
    found = [8]
    for path in adapters.values():
        settings = json.loads((Path(path) / "adapter_config.json").read_bytes())
        found += [int(settings.get("r") or 8), *map(int, (settings.get("rank_pattern") or {}).values())]
    fitting = [rank for rank in LORA_RANKS if rank >= max(found)]
    if not fitting:
        raise InputError(f"an adapter of rank {max(found)}: vLLM takes up to {LORA_RANKS[-1]}; use --backend transformers")
    return fitting[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
