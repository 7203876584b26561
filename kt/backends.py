"""The backends that a config asks for: the model that writes, the fallback if allowed, and the model that scores."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt.cache import Cache, Task
from kt.client import Backend
from kt.config import BuildConfig
from kt.endpoint import Endpoint
from kt.errors import EngineError, InputError, OfflineError, Unavailable
from kt.offline import check_addresses, go_offline
from kt.prices import price_of
from kt.request import Request
from kt.weights import combined_fingerprint, fingerprint
from kt.wire import Answer, Dialect

if TYPE_CHECKING:
    from kt.scoring import LocalScorer
    from kt.serving import Server

REVISION_LENGTH = 16
"""Hex digits of a weights fingerprint that stand in keys and records."""


@dataclass
class StartedEndpoint:
    """A model that `kt` serves itself: the engine is started at the first request that the cache cannot answer."""

    engine: str
    path: str
    model: str
    revision: str
    start: Callable[[], contextlib.AbstractContextManager[Server]]
    timeout: float = 600.0
    retries: int = 3
    engine_version: str = ""
    fallback: bool = False
    weights_known: bool = True
    server: Server | None = None
    _inner: Endpoint | None = None
    _starting: asyncio.Lock | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def down(self) -> bool:
        """True once the engine has died."""
        return self._inner is not None and self._inner.down

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return 0: this machine's time is not billed by the token."""
        return 0.0

    async def send(self, request: Request) -> Answer:
        """Ask the engine, starting it first if need be; Unavailable, with its log's end, if it has died."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._inner is None:
                await asyncio.to_thread(self._serve)
        assert self._inner is not None
        assert self.server is not None
        try:
            return await self._inner.send(request)
        except Unavailable:
            self._say_if_dead()
            raise

    def _say_if_dead(self) -> None:
        assert self.server is not None
        try:
            self.server.check()
        except EngineError as death:
            raise Unavailable(str(death)) from death

    def _serve(self) -> None:
        self.server = self._stack.enter_context(self.start())
        self.engine_version = self.server.engine_version
        self._inner = Endpoint(
            "vllm" if self.engine == "vllm" else "llama-cpp",
            [self.server.base_url],
            self.server.model,
            api_key=self.server.api_key,
            timeout=self.timeout,
            retries=self.retries,
        )

    async def close(self) -> None:
        """Close the connections; the engine stays for the next step."""
        if self._inner is not None:
            await self._inner.close()

    def stop(self) -> None:
        """Stop the engine."""
        self._stack.close()
        self._inner = self.server = None


def writers(config: BuildConfig, cache: Cache, log_path: Path, on_wait: Callable[..., Any] | None = None) -> list[Backend]:
    """Return who is asked for texts, in order: the configured backend, then the fallback if there is one."""
    if config.offline:
        go_offline()
        check_addresses(config.base_url, config.inside)
    first: Backend
    if config.backend == "replay":
        first = _replayed(config, cache)
    elif config.base_url:
        first = _endpoint(config)
    else:
        first = _started(config, log_path, on_wait)
    return [first, _fallback(config)] if config.fallback else [first]


def _replayed(config: BuildConfig, cache: Cache) -> Backend:
    """Stand in for the model that filled the cache: its name and revision make the keys, nothing is ever sent."""
    name, revision = config.model, config.revision
    if not config.base_url and Path(config.model).exists():
        name, revision = model_name(config.model), revision or _served_revision(config)
    elif not revision:
        if not cache.revisions(name, "write") and cache.revisions(
            Path(name).stem, "write"
        ):  # the path of a model left behind elsewhere
            name = Path(name).stem
        revision = only_revision(cache, name, "write", "--revision")
    return Endpoint("openai", ["http://127.0.0.1:9"], name, revision, weights_known=True)


def only_revision(cache: Cache, model: str, task: Task, option: str) -> str:
    """Return the one revision under which a model answered into this cache; InputError if there are several."""
    known = cache.revisions(model, task)
    if len(known) > 1:
        raise InputError(
            f"{cache.path}: {model} answered with several weights:"
            f" {', '.join(name or '(unnamed)' for name in known)}; choose with {option}"
        )
    return known[0] if known else ""


def _endpoint(config: BuildConfig) -> Endpoint:
    assert config.backend != "replay"
    dialect: Dialect = config.backend
    price = price_of(config.model) if dialect == "openai" else None
    return Endpoint(
        dialect,
        list(config.base_url),
        config.model,
        config.revision,
        api_key=os.environ.get(config.api_key_env, ""),
        timeout=config.timeout,
        retries=config.retries,
        price_in=price.prompt if price else 0.0,
        price_out=price.completion if price else 0.0,
        engine=dialect,
        asked_for_key=config.api_key_env,
    )


def _fallback(config: BuildConfig) -> Endpoint:
    fallback = config.fallback
    assert fallback is not None
    key = os.environ.get(fallback.api_key_env, "")
    if not key and config.backend != "replay":  # a replay reads what the fallback answered, and asks nobody
        raise InputError(f"--fallback {fallback.backend}: no key in {fallback.api_key_env}; set it, or leave out --fallback")
    price = price_of(fallback.model)
    if price is None and config.max_cost is not None:
        raise InputError(f"--max-cost: no price for {fallback.model}; add it to ./configs/prices.yaml")
    return Endpoint(
        fallback.backend,
        list(fallback.base_url),
        fallback.model,
        api_key=key,
        fallback=True,
        timeout=config.timeout,
        retries=config.retries,
        price_in=price.prompt if price else 0.0,
        price_out=price.completion if price else 0.0,
        engine="openai",
        asked_for_key=fallback.api_key_env,
    )


def _served_revision(config: BuildConfig) -> str:
    """Return by what a model that `kt` serves is known: its weights, and how the engine was told to compute with them."""
    told = [config.server.dtype, *config.server.extra_args]
    how = f"+{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}" if told != ["auto"] else ""
    return fingerprint(config.model)[:REVISION_LENGTH] + how


def _started(config: BuildConfig, log_path: Path, on_wait: Callable[..., Any] | None) -> StartedEndpoint:
    local = Path(config.model).exists()
    if config.offline and not local:
        raise OfflineError(f"--offline: {config.model} is no folder or file on this machine; give --model PATH")
    if config.backend == "llama-cpp" and not local:
        raise InputError(f"--model {config.model}: no such file; the llama-cpp backend needs a GGUF file, or give --base-url")
    dialect: Dialect = "vllm" if config.backend == "vllm" else "llama-cpp"
    revision = config.revision or (_served_revision(config) if local else "")
    name = model_name(config.model)

    def start() -> contextlib.AbstractContextManager[Server]:
        from kt.serving import serve

        server = config.server
        return serve(
            dialect,
            config.model,
            name=name,
            max_model_len=server.max_model_len,
            dtype=server.dtype,
            extra_args=tuple(server.extra_args),
            log_path=log_path,
            on_wait=on_wait,
        )

    return StartedEndpoint(
        dialect, config.model, name, revision, start, config.timeout, config.retries, weights_known=bool(revision)
    )


def scorer(config: BuildConfig, cache: Cache) -> LocalScorer:
    """Return the local model that scores facts, known by its weights; it is loaded only if the cache lacks a score."""
    from kt.scoring import LocalScorer

    difficulty = config.difficulty
    assert difficulty.scorer is not None
    adapter = difficulty.adapter
    name = model_name(difficulty.scorer) + (f"+{model_name(adapter)}" if adapter else "")
    if Path(difficulty.scorer).exists():
        revision = combined_fingerprint(difficulty.scorer, adapter)[:REVISION_LENGTH]
    elif config.backend == "replay":
        revision = only_revision(cache, name, "score", "--scorer PATH")
    else:
        raise InputError(f"--scorer {difficulty.scorer}: no such folder; give a Hugging Face model's folder on this machine")
    return LocalScorer(difficulty.scorer, adapter, name, revision, engine_version=_version("transformers"))


def model_name(path: str) -> str:
    """Return the name a model goes by in keys and records: a local one's file or folder name, without where it lies."""
    place = Path(path)
    return (place.stem if place.is_file() else place.resolve().name) if place.exists() else path.rstrip("/")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
