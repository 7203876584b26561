"""Who answers for `kt generate`: a base model with an adapter in this process, or one of the adapters of a vLLM server."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kt.backends import StartedEndpoint
from kt.endpoint import Endpoint, TooLong
from kt.local_backend import LocalBackend
from kt.request import Request
from kt.template import prompt_tokens, render_prompt
from kt.wire import Answer

if TYPE_CHECKING:
    from kt.models import LocalModel

BATCH_CPU, BATCH = 8, 64
"""Answers written at once; on a GPU the memory sets the bound, and a batch that does not fit is halved."""
ONLY_AS_ASKED = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Said to a server, which would else add the sampling settings of the model's folder to ours."""


@dataclass
class LocalGenerator(LocalBackend):
    """A local model that answers; questions of like length share a batch, the longest first.

    `dtype` auto is float32 on a CPU and bfloat16 on an accelerator.
    """

    batch_size: int | None = None
    dtype: str = "auto"

    def load(self) -> LocalModel:
        """Load the model and its adapter."""
        import torch

        from kt.models import load

        best = "bfloat16" if torch.accelerator.is_available() else "float32"
        return load(self.path, self.adapter, dtype=best if self.dtype == "auto" else self.dtype)

    def room(self, local: LocalModel) -> int:
        """Return the batch size: what was asked for, or what suits the device."""
        return self.batch_size or (BATCH_CPU if local.device.type == "cpu" else BATCH)

    def order(self, request: Request) -> int:
        """Put long questions first, so that lack of memory shows at once."""
        return -len(request.body.get("prompt") or request.body["question"])

    def answer(self, local: LocalModel, requests: list[Request]) -> list[Answer | Exception]:
        """Write the answers of a batch of requests of the same parameters."""
        from kt.decoding import decode

        started = time.monotonic()
        prompts = [prompt_tokens(local.tokenizer, rendered(request, local.tokenizer)) for request in requests]
        found: list[Answer | Exception] = [self._too_long(local, p, r) for p, r in zip(prompts, requests, strict=True)]
        fit = [place for place, problem in enumerate(found) if problem is None]
        draws = [f"{requests[i].body.get('seed', 0)}:{requests[i].sample}:{prompts[i]}" for i in fit]
        texts = decode(local, [prompts[i] for i in fit], draws, requests[0].body, self.stopping) if fit else []
        latency = (time.monotonic() - started) / len(requests)
        for place, (text, tokens, reason) in zip(fit, texts, strict=True):
            found[place] = Answer(text, text, "ok", reason, self.model, len(prompts[place]), tokens, latency)
        return found

    def _too_long(self, local: LocalModel, prompt: Sequence[int], request: Request) -> Any:
        """Return the problem of a prompt that leaves no room for its answer, as vLLM puts it, or None."""
        limit, wanted = local.context_length, request.body["max_tokens"]
        if limit is None or len(prompt) + wanted <= limit:
            return None
        said = f"{len(prompt)} tokens and an answer of up to {wanted}; {self.model} takes {limit}"
        return TooLong(f"{said}: lower --max-tokens")


@dataclass
class ServedGenerator:
    """One adapter of a vLLM server, or its base: asked by its name there, known to the cache by its weights."""

    server: StartedEndpoint | Endpoint
    served_as: str
    model: str
    revision: str
    path: str | None
    weights_known: bool
    engine: str = "vllm"
    engine_version: str = ""
    fallback: bool = False

    @property
    def down(self) -> bool:
        """True while the server does not answer."""
        return self.server.down

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return 0: a server of one's own is not billed by the token."""
        return 0.0

    async def send(self, request: Request) -> Answer:
        """Ask the server, with the very tokens that a local model would be given."""
        sent = {name: value for name, value in request.body.items() if name not in ("template", "question")}
        if self.path is not None:
            sent["prompt"] = prompt_tokens(self.tokenizer, rendered(request, self.tokenizer))
        answer = await self.server.send(request._replace(body={**ONLY_AS_ASKED, **sent, "model": self.served_as}))
        self.engine_version = self.server.engine_version
        return answer

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        from kt.models import load_tokenizer

        assert self.path is not None
        return load_tokenizer(self.path)

    async def close(self) -> None:
        """Close the connections."""
        await self.server.close()


def rendered(request: Request, tokenizer: Any) -> str:
    """Return a request's prompt; one in the chat template is written by the model's own tokenizer."""
    if "prompt" in request.body:
        return str(request.body["prompt"])
    return render_prompt(request.body["question"], request.body["template"], tokenizer)
