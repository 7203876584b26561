"""Completions, cache first, then from an endpoint: single flight, leases, budget; committed before anyone sees them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from kt.cache import LEASE_SECONDS, Cache, Row, Task, now
from kt.endpoint import TooLong
from kt.errors import BackendError, BudgetError, CacheError, Unavailable
from kt.group_commit import GroupCommit
from kt.request import Completion, Kind, Request, canonical, chat, key_of
from kt.wire import Answer

Result = TypeVar("Result")

CANARY = chat([{"role": "user", "content": "Count from one to ten in words."}], {"max_tokens": 8, "seed": 0, "temperature": 0})
"""A fixed question, asked once a run of a server whose weights cannot be seen: another answer means other weights."""
TEXT_CANARY = Request(
    "generate", {"prompt": "Count from one to ten in words:", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
)
"""The same for a model that is asked to go on with a text: it may have no chat template, and nothing to say."""
_TASKS: dict[Kind, Task] = {"loglikelihood": "score", "generate": "generate"}


class Backend(Protocol):
    """What answers requests: an HTTP endpoint, or a model in this process. `send` raises Unavailable or Refused."""

    model: str
    revision: str
    engine: str
    engine_version: str
    fallback: bool
    weights_known: bool

    @property
    def down(self) -> bool: ...
    def cost(self, prompt_tokens: int, completion_tokens: int) -> float: ...
    async def send(self, request: Request) -> Answer: ...
    async def close(self) -> None: ...


class Asked(NamedTuple):
    """A request addressed to one backend, with the key of its answer."""

    backend: Backend
    request: Request
    canonical: bytes
    key: str


@dataclass
class Counters:
    """What happened since the client was opened, for the display and the last line."""

    sent: int = 0
    hits: int = 0
    fallback: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass
class Client:
    """Asks `backends` in order, through the cache. Use as a context manager; `run` drives its coroutines."""

    cache: Cache
    backends: Sequence[Backend]
    workers: int = 64
    max_cost: float | None = None
    counters: Counters = field(default_factory=Counters)
    parent: Client | None = None

    def __post_init__(self) -> None:
        self._writer = GroupCommit(self.cache)
        self._flights: dict[str, asyncio.Future[Completion]] = {}
        self._checked: dict[str, asyncio.Future[None]] = {}
        self._validators: dict[bytes, Callable[[Any], bool]] = {}
        self._reserved = 0.0
        self._settled = asyncio.Event()
        self._runner: asyncio.Runner | None = None

    def beside(self, backends: Sequence[Backend], workers: int) -> Client:
        """Return a client of other backends on the same cache, counters and loop; close it before this one."""
        return Client(self.cache, backends, workers, self.max_cost, self.counters, self)

    # ---- asking ------------------------------------------------------------------------------------------------------

    def address(self, backend: Backend, request: Request) -> Asked:
        """Name the answer that this backend would give to this request."""
        text = canonical(request, backend.model, backend.revision)
        return Asked(backend, request, text, key_of(text))

    def lookup(self, backend: Backend, request: Request) -> Completion | None:
        """Return what the cache holds for a request, whatever its status; sends nothing."""
        return self.cache.get(key_of(canonical(request, backend.model, backend.revision)))

    async def fetch(self, asked: Asked) -> Completion:
        """Return a completion from the cache, or ask for it, once, however many ask for it here or in other processes."""
        found = self.cache.get(asked.key)
        if found is not None:
            self.counters.hits += 1
            return found
        flight = self._flights.get(asked.key)
        if flight is None:
            flight = self._flights[asked.key] = asyncio.ensure_future(self._ask(asked))
            flight.add_done_callback(lambda _: self._flights.pop(asked.key, None))
            return await flight
        return await asyncio.shield(flight)

    async def _ask(self, asked: Asked) -> Completion:
        await self._check_weights(asked.backend, _TASKS.get(asked.request.kind, "write"))
        pause = 0.01
        while not await self._writer.claim(asked.key):  # another process is asking: wait for its answer, or its death
            found = self.cache.get(asked.key)
            if found is not None:
                self.counters.hits += 1
                return found
            await asyncio.sleep(pause)
            pause = min(0.25, pause * 1.5)
        try:
            row = await self._send(asked)
            await self._writer.put(row)
        except BaseException:
            with contextlib.suppress(Exception):
                self.cache.release([asked.key])
            raise
        return row.completion()

    async def _send(self, asked: Asked) -> Row:
        backend, request = asked.backend, asked.request
        estimate = backend.cost(len(asked.canonical) // 2, int(request.body.get("max_tokens", 1)))
        await self._reserve(estimate)
        spent = 0.0
        try:
            answer = self._judge(request, await backend.send(request))
            spent = backend.cost(answer.prompt_tokens, answer.completion_tokens)
        except TooLong as problem:
            said = orjson.dumps({"error": str(problem)}).decode()
            answer = Answer(said, str(problem), "too-long", "", backend.model, 0, 0, 0.0)
        finally:
            self._settle(estimate)
        self._count(backend, answer, spent)
        return _row(asked, answer, spent)

    def _judge(self, request: Request, answer: Answer) -> Answer:
        """Mark an answer that breaks the schema it was asked for."""
        if request.schema is None or answer.status != "ok":
            return answer
        name = orjson.dumps(request.schema)
        is_valid = self._validators.get(name)
        if is_valid is None:
            import jsonschema_rs

            is_valid = self._validators[name] = jsonschema_rs.validator_for(dict(request.schema)).is_valid
        try:
            valid = is_valid(orjson.loads(answer.text))
        except orjson.JSONDecodeError:
            valid = False
        return answer if valid else answer._replace(status="invalid")

    def _count(self, backend: Backend, answer: Answer, spent: float) -> None:
        counters = self.counters
        counters.sent += 1
        counters.fallback += backend.fallback
        counters.prompt_tokens += answer.prompt_tokens
        counters.completion_tokens += answer.completion_tokens
        counters.cost += spent

    # ---- money -------------------------------------------------------------------------------------------------------

    async def _reserve(self, estimate: float) -> None:
        """Wait until the most that a call may cost fits under max_cost, or stop."""
        if self.max_cost is None or not estimate:
            return
        while self.counters.cost + self._reserved + estimate > self.max_cost:
            if not self._reserved:
                raise BudgetError(
                    f"stopped at ${self.counters.cost:.4f}: the next call could cost ${estimate:.4f} and pass --max-cost"
                    f" {self.max_cost:g}; everything received is kept: raise --max-cost and run again"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += estimate

    def _settle(self, estimate: float) -> None:
        if self.max_cost is not None and estimate:
            self._reserved = max(0.0, self._reserved - estimate)
            if self._reserved < 1e-12:
                self._reserved = 0.0
            self._settled.set()

    # ---- the same name, other weights --------------------------------------------------------------------------------

    async def _check_weights(self, backend: Backend, task: Task) -> None:
        name = f"{backend.model}\0{backend.revision}\0{task}"
        check = self._checked.get(name)
        if check is not None and check.done() and not check.cancelled() and check.exception() is None:
            return
        if check is None or check.done():
            check = self._checked[name] = asyncio.ensure_future(self._ask_canary(backend, task))
        await asyncio.shield(check)

    async def _ask_canary(self, backend: Backend, task: Task) -> None:
        before = self.cache.canary(backend.model, backend.revision, task)
        if backend.fallback or backend.weights_known:  # what a hosted model's name stands for is on every record
            self.cache.remember_model(backend.model, backend.revision, task, None)
            return
        try:
            said = (await backend.send(TEXT_CANARY if task == "generate" else CANARY)).text
        except TooLong:
            said = ""
        if before is None:
            self.cache.remember_model(backend.model, backend.revision, task, said)
        elif before != said:
            raise BackendError(
                f"the server's model {backend.model!r} is not the one that filled {self.cache.path}: to a fixed question it"
                f" answers {said!r}, then it was {before!r}. Give --revision NAME to keep these weights apart, or serve"
                " the earlier ones"
            )

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Drive a coroutine to its end on this client's loop, keeping leases alive meanwhile."""
        return self._loop().run(self._with_heartbeat(work))

    def _loop(self) -> asyncio.Runner:
        if self.parent is not None:
            return self.parent._loop()
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=_loop_factory())
        return self._runner

    async def _with_heartbeat(self, work: Coroutine[Any, Any, Result]) -> Result:
        beat = asyncio.ensure_future(self._beat())
        try:
            return await work
        finally:
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(CacheError):  # what is wrong with the cache, the next completion will say
                self.cache.heartbeat()

    def close(self) -> None:
        """Close connections, and the loop if it is this client's; the cache is its opener's to close."""
        if self.parent is not None or self._runner is not None:
            self._loop().run(self._end())
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    async def _end(self) -> None:
        """Close the backends; before the last client does, end what still runs: it would open its connection anew."""
        others = set() if self.parent else asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for backend in self.backends:
            await backend.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def unavailable(problem: Unavailable, fallback_allowed: bool) -> Unavailable:
    """Add to a failure what the user can do next."""
    fallback = "" if fallback_allowed else ", or (kt build-data) allow --fallback openai"
    todo = f"start the server (or give --base-url){fallback}"
    return Unavailable(f"no model answers: {problem}; {todo} and run the same command again: every answer received is kept")


def _row(asked: Asked, answer: Answer, spent: float) -> Row:
    request, backend = asked.request, asked.backend
    return Row(
        asked.key,
        request.kind,
        backend.model,
        backend.revision,
        request.sample,
        request.prompt,
        request.prompt_hash,
        answer.status,
        answer.text,
        answer.finish_reason,
        answer.answered_by,
        backend.engine,
        backend.engine_version,
        answer.prompt_tokens,
        answer.completion_tokens,
        spent,
        round(answer.latency, 4),
        now(),
        asked.canonical.decode(),
        answer.response,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return None
    return uvloop.new_event_loop
