"""A step of the pipeline and its driver: fill the cache with what is missing, then read the answers in input order.

A step is two pure functions, `requests(record)` and `parse(record, completions)`. It follows that the records are the same
bytes at any concurrency, that after a crash exactly the unanswered requests are sent, that a replay is the reading alone,
that a changed prompt sends what it changes and a changed parser sends nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kt.client import Asked, Client, unavailable
from kt.errors import KtError, MissError, Unavailable
from kt.manifest import Usage, write_manifest
from kt.records import Record, jsonl_writer
from kt.request import Completion, Request

Inputs = Callable[[], Iterable[Record]]
"""Gives the step's records afresh each time it is called: they are read twice and never held."""


class BadAnswer(Exception):
    """`parse` cannot use an answer: ask again with the next sample number."""


class Reject(Exception):
    """`parse` or `requests` finds that a record can never pass this step: write it to the rejects."""


@dataclass(frozen=True)
class Step:
    """One step: its folder's name, what it asks about a record, and what it makes of the answers.

    `requests` returns no request for a step that needs no model. `config` is what the manifest records of its settings.
    """

    name: str
    requests: Callable[[Record], Sequence[Request]]
    parse: Callable[[Record, Sequence[Completion]], Sequence[Record]]
    config: dict[str, Any] = field(default_factory=dict)
    attempts: int = 3


class Done(NamedTuple):
    """What a step makes of a record, and the completions it was made of."""

    records: Sequence[Record]
    completions: Sequence[Completion]


class Rejected(NamedTuple):
    """Why a record cannot pass."""

    reason: str


class Missing(NamedTuple):
    """What to ask next for a record."""

    asked: list[Asked]


Outcome = Done | Rejected | Missing


def outcome(step: Step, record: Record, client: Client, skip: frozenset[int] = frozenset()) -> Outcome:
    """Say what the cache makes of a record: its records, a reject, or the requests to send next. Sends nothing.

    The first backend in order with a usable answer gives it; one that is incomplete but not in `skip` (indices of
    backends) is asked next; when the last backend's answers are all unusable, the record is rejected.
    """
    try:
        requests = step.requests(record)
        if not requests:
            return Done(step.parse(record, ()), ())
    except Reject as reject:
        return Rejected(str(reject))
    missing, reason = None, ""
    last: Outcome = Rejected("no backend")
    for index in range(len(client.backends)):
        last = _of_backend(step, record, requests, client, index)
        if isinstance(last, Done):
            return last
        if isinstance(last, Rejected):
            reason = reason or last.reason
        elif missing is None and index not in skip:
            missing = last
    if isinstance(last, Rejected):
        return Rejected(reason)
    return missing or Missing([])


def _of_backend(step: Step, record: Record, requests: Sequence[Request], client: Client, index: int) -> Outcome:
    """Go through one backend's tries: the first whose answers are all usable counts."""
    backend, stride, reason = client.backends[index], len(requests), ""
    for attempt in range(step.attempts):
        completions, missing = [], []
        for request in requests:
            asked = client.address(backend, request.again(attempt, stride))
            completion = client.cache.get(asked.key)
            if completion is None:
                missing.append(asked)
            else:
                completions.append(completion)
        if missing:
            return Missing(missing)
        bad = next((c for c in completions if c.status != "ok"), None)
        if bad is not None:
            reason = f"{bad.status} answer" + (f": {bad.text[:200]}" if bad.status == "too-long" else "")
            if bad.status == "too-long":
                break
            continue
        try:
            return Done(step.parse(record, completions), completions)
        except BadAnswer as problem:
            reason = str(problem)
        except Reject as reject:
            return Rejected(str(reject))
    return Rejected(f"{reason} ({attempt + 1} {'try' if attempt == 0 else 'tries'})")


# ---- fill ------------------------------------------------------------------------------------------------------------


async def fill(step: Step, records: Iterable[Record], client: Client, seen: Callable[[], None]) -> None:
    """Send what the cache lacks, with at most `client.workers` records under way; each answer is stored as it arrives."""
    shared = iter(records)

    async def work() -> None:
        for number, record in enumerate(shared):
            await settle(step, record, client)
            seen()
            if number % 64 == 0:  # records found in the cache never wait: let others speak
                await asyncio.sleep(0)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(client.workers):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures


async def settle(step: Step, record: Record, client: Client) -> Outcome:
    """Ask for what a record lacks until it is done or rejected; a backend that is down is passed over if another is left."""
    given_up: set[int] = set()
    problem = Unavailable("no backend is configured")
    while True:
        down = {index for index, backend in enumerate(client.backends) if backend.down}
        usable = len(client.backends) - len(given_up | down)
        now = outcome(step, record, client, frozenset(given_up | (down if usable else set())))
        if not isinstance(now, Missing):
            return now
        if not now.asked:
            raise unavailable(problem, any(b.fallback for b in client.backends))
        try:
            await _all(client.fetch(one) for one in now.asked)
        except Unavailable as failure:
            problem = failure
            given_up.add(_index(client, now.asked[0]))


async def _all(calls: Iterable[Coroutine[Any, Any, Completion]]) -> None:
    """Wait for every call, then raise the first failure: a call left to itself would outlive its run."""
    for found in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found


def _index(client: Client, asked: Asked) -> int:
    return next(index for index, backend in enumerate(client.backends) if backend is asked.backend)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Pick the one error to show: one that the user can act on, before any cancellation."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        else:
            flat.append(error)
    return next((e for e in flat if isinstance(e, KtError)), flat[0])


# ---- run -------------------------------------------------------------------------------------------------------------


@dataclass
class StepResult:
    """What a step wrote: counts, and where its records are."""

    name: str
    records: Path
    read: int = 0
    written: int = 0
    rejected: int = 0


class Watcher:
    """Is told how a run goes on; this one says nothing. The command line's display is another."""

    def begin(self, step: str, total: int | None) -> None:
        """A step begins; it will read `total` records, if that is known."""

    def filled(self) -> None:
        """A record's answers are all in the cache."""

    def end(self, result: StepResult) -> None:
        """A step has written its records."""


def run_step(
    step: Step,
    inputs: Inputs,
    sources: Sequence[Path],
    folder: Path,
    client: Client,
    *,
    replay: bool = False,
    total: int | None = None,
    watcher: Watcher | None = None,
) -> StepResult:
    """Run one step into `folder`: records.jsonl, rejected.jsonl, then manifest.json. Raises MissError under replay."""
    watcher = watcher or Watcher()
    watcher.begin(step.name, total)
    result = StepResult(step.name, folder / "records.jsonl")
    usage = Usage()
    (folder / "manifest.json").unlink(missing_ok=True)
    with jsonl_writer(result.records) as write, jsonl_writer(folder / "rejected.jsonl") as reject:
        for record, found in _outcomes(step, inputs, client, replay, watcher):
            result.read += 1
            if isinstance(found, Rejected):
                result.rejected += 1
                reject({"id": record["id"], "step": step.name, "reason": found.reason, "record": record})
                continue
            for made in found.records:
                write(made)
                result.written += 1
            usage.add(found.completions)
    counts = {"read": result.read, "written": result.written, "rejected": result.rejected}
    write_manifest(folder, step.name, step.config, sources, usage, counts)
    watcher.end(result)
    return result


def _outcomes(
    step: Step, inputs: Inputs, client: Client, replay: bool, watcher: Watcher
) -> Iterator[tuple[Record, Done | Rejected]]:
    """Yield what became of every record, in order; at the first one that lacks answers, fill all that follow."""
    filled = False
    missed: list[str] = []
    for number, record in enumerate(inputs()):
        found = outcome(step, record, client)
        if isinstance(found, Missing) and not replay and not filled:
            client.run(fill(step, itertools.islice(inputs(), number, None), client, watcher.filled))
            filled = True
            found = outcome(step, record, client)
        if isinstance(found, Missing):
            missed.append(found.asked[0].key)
            del missed[1000:]
            if not replay:
                raise KtError(f"step {step.name}: the answer for {record['id']} vanished from the cache while it was read")
            continue
        if not missed:
            if not filled:
                client.counters.hits += len(found.completions) if isinstance(found, Done) else 0
                watcher.filled()
            yield record, found
    if missed:
        raise _miss(step, missed)


def _miss(step: Step, missed: list[str]) -> MissError:
    count = f"{len(missed)}" if len(missed) < 1000 else "1000 or more"
    first = ", ".join(key[:16] for key in missed[:3])
    return MissError(
        f"step {step.name}: the cache lacks {count} completion(s) that this replay needs (first keys: {first});"
        " run with a backend to fill it, or check that --model, --revision, --prompts and --seed are those of the run"
    )
