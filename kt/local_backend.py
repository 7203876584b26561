"""A model in this process as a backend of the client: what is asked is collected and answered in batches, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kt.request import Request
from kt.wire import Answer

if TYPE_CHECKING:
    from kt.models import LocalModel

TURN_SECONDS = 0.01
"""How long the others of a turn are waited for, so that batches are full."""


@dataclass
class LocalBackend:
    """A local model, loaded at the first request that the cache cannot answer; what it does with a batch is a subclass's.

    `revision` is its weights' fingerprint. An answer goes to the client, and so into the cache, as soon as its batch is done.
    """

    path: str
    adapter: str | None
    model: str
    revision: str
    engine: str = "transformers"
    engine_version: str = ""
    fallback: bool = False
    weights_known: bool = True
    down: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)
    _waiting: list[tuple[Request, asyncio.Future[Answer]]] = field(default_factory=list)
    _running: asyncio.Task[None] | None = None
    _loaded: LocalModel | None = None

    def load(self) -> LocalModel:
        """Load the model; called once, in the thread."""
        from kt.models import load

        return load(self.path, self.adapter)

    def room(self, local: LocalModel) -> int:
        """Return how many requests may be answered together."""
        raise NotImplementedError

    def order(self, request: Request) -> int:
        """Return by what requests are sorted before the first ones are taken: like beside like."""
        return 0

    def answer(self, local: LocalModel, requests: list[Request]) -> Sequence[Answer | Exception]:
        """Answer a batch; an exception in an answer's place is that request's alone."""
        raise NotImplementedError

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return 0: this machine's time is not billed by the token."""
        return 0.0

    async def send(self, request: Request) -> Answer:
        """Return the model's answer to a request once its batch has been worked off."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(TURN_SECONDS)
        while self._waiting:
            await self._batch()
            await asyncio.sleep(TURN_SECONDS)

    async def _batch(self) -> None:
        """Answer as many of the waiting as there is room for; a failure is theirs alone, a model that is missing everyone's."""
        batch = self._waiting
        try:
            local = await asyncio.to_thread(self._model)
            self._waiting.sort(key=lambda waiting: self.order(waiting[0]))
            room = self.room(local)
            batch, self._waiting = self._waiting[:room], self._waiting[room:]
            answers = await asyncio.to_thread(self.answer, local, [request for request, _ in batch])
        except BaseException as error:
            self._waiting = [] if batch is self._waiting else self._waiting
            _settle([future for _, future in batch], [error] * len(batch))
            if not isinstance(error, Exception):
                raise
            return
        _settle([future for _, future in batch], answers)

    def _model(self) -> LocalModel:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    async def close(self) -> None:
        """Stop answering what nobody waits for any more, and let the model go."""
        self.stopping.set()
        if self._running is not None:
            self._running.cancel()
        self._loaded = None


def _settle(futures: Sequence[asyncio.Future[Answer]], answers: Sequence[Answer | BaseException]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
