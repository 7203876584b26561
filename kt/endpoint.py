"""One OpenAI-compatible model behind one or several URLs: HTTP, balancing, retries, rate limits, breaker.

aiohttp rather than the openai package: it makes an order of magnitude more calls a second (bench/first_run.py), and the
four fields read from an answer need no client library. It is imported at the first call: a replay makes none.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson

from kt.errors import InputError, Refused, Unavailable
from kt.request import Request
from kt.wire import Answer, Dialect, Transient, message_of, read_answer, wire_body

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 1.5
"""A network that swallows packets may cost a command this long once, not once a call."""
LATELY_SECONDS = 30.0
COOL_DOWN_SECONDS = 5.0
"""How long until a URL that failed is looked for again; doubled each time it fails anew without an answer in between."""
LONGEST_COOL_DOWN_SECONDS = 300.0
PROBE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
MOST_RATE_LIMITS = 20
SHORTEST_SECRET = 16
"""A key of fewer letters (vLLM's customary EMPTY) is no secret and may be a word of an answer: answers are left as they are."""

_PATHS = {"chat": "/chat/completions", "completions": "/completions", "generate": "/completions"}
_TOO_LONG = re.compile(
    r"context (length|window)|maximum.{0,20}(length|tokens)|too (long|many tokens)|exceeds? .{0,40}context", re.I
)


@dataclass
class Replica:
    """One URL of an endpoint, with what is known of its health."""

    url: str
    in_flight: int = 0
    down: bool = False
    on_trial: bool = False  # it lists its models again: one call at a time shows whether it also answers
    problem: str = ""
    cool_down: float = 0.0
    paused_until: float = 0.0
    answered: float = float("-inf")

    @property
    def usable(self) -> bool:
        """False while a call to it would wait for nothing."""
        return not self.down and not (self.on_trial and self.in_flight)


@dataclass
class Endpoint:
    """A model and where it is served; `send` asks it once and raises Unavailable or Refused when no answer can be had."""

    dialect: Dialect
    urls: list[str]
    model: str
    revision: str = ""
    api_key: str = field(default="", repr=False)
    fallback: bool = False
    weights_known: bool = False  # `revision` is a fingerprint of the weights being served
    timeout: float = 600.0
    retries: int = 3
    price_in: float = 0.0  # dollars per token
    price_out: float = 0.0
    engine: str = ""
    engine_version: str = ""
    asked_for_key: str = "KT_API_KEY"

    def __post_init__(self) -> None:
        if not self.api_key.isascii() or any(c in self.api_key for c in "\r\n\0"):
            raise InputError(f"the API key in {self.asked_for_key} holds characters that cannot be sent")
        self.replicas = [Replica(check_url(url)) for url in self.urls]
        self._session: aiohttp.ClientSession | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}

    @property
    def down(self) -> bool:
        """True while no URL of this endpoint answers."""
        return not any(replica.usable for replica in self.replicas)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return dollars for tokens at this endpoint's price."""
        return prompt_tokens * self.price_in + completion_tokens * self.price_out

    async def send(self, request: Request) -> Answer:
        """Ask until there is an answer, the retries are spent, or asking again cannot help."""
        payload = orjson.dumps(wire_body(request, self.model, self.dialect))
        path = _PATHS[request.kind]
        failures = limits = 0
        while True:
            replica = await self._choose()
            try:
                answer = await self._post(replica, path, payload, request.kind)
                replica.on_trial, replica.cool_down, replica.answered = False, 0.0, time.monotonic()
                return answer
            except _RateLimited as limit:
                limits += 1
                if limits > MOST_RATE_LIMITS or limit.seconds > LONGEST_PAUSE_SECONDS:
                    raise Unavailable(f"{replica.url}: {limit}, asked to wait {limit.seconds:.0f} s") from limit
                replica.paused_until = max(replica.paused_until, time.monotonic() + limit.seconds)
            except Transient as problem:
                failures += 1
                if failures > self.retries:
                    self._mark_down(replica, str(problem))
                    raise Unavailable(f"{replica.url}: {problem}, {failures} times") from problem
                await asyncio.sleep(min(8.0, 0.25 * 2**failures) * random.uniform(0.5, 1.0))
            except _Unreachable as problem:
                self._mark_down(replica, str(problem))

    async def _choose(self) -> Replica:
        """Return the healthy URL with the fewest calls in flight, waiting out a rate limit."""
        while True:
            healthy = [r for r in self.replicas if r.usable]
            if not healthy:
                problems = "; ".join(f"{r.url}: {r.problem}" for r in self.replicas)
                raise Unavailable(problems)
            moment = time.monotonic()
            ready = [r for r in healthy if r.paused_until <= moment]
            if ready:
                return min(ready, key=lambda r: r.in_flight)
            await asyncio.sleep(min(r.paused_until for r in healthy) - moment)

    async def _post(self, replica: Replica, path: str, payload: bytes, kind: str) -> Answer:
        import aiohttp

        replica.in_flight += 1
        started = time.monotonic()
        try:
            async with self._http().post(replica.url + path, data=payload, allow_redirects=False) as reply:
                body = await reply.read()
                status, kind_of_body, wait = reply.status, reply.content_type, reply.headers.get("Retry-After")
        except aiohttp.ConnectionTimeoutError as error:
            if time.monotonic() - replica.answered < LATELY_SECONDS:  # it lives: this machine or it is merely busy
                raise Transient(f"no connection within {CONNECT_SECONDS} s") from error
            raise _Unreachable(f"no connection within {CONNECT_SECONDS} s") from error
        except aiohttp.ClientConnectorError as error:
            raise _Unreachable(f"connection failed ({error.os_error.strerror or type(error).__name__})") from error
        except TimeoutError as error:
            raise _Unreachable(f"no answer within {self.timeout:g} s (see --timeout)") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"the connection broke off ({type(error).__name__})") from error
        finally:
            replica.in_flight -= 1
        if status != 200 or len(self.api_key) >= SHORTEST_SECRET:
            body = self._without_key(body)
        if status != 200:
            raise self._complaint(replica, status, body, kind_of_body, wait)
        return read_answer(body, kind, kind_of_body, time.monotonic() - started)

    def _without_key(self, body: bytes) -> bytes:
        """Take the key out of a reply that repeats it, before anything of the reply is shown or kept."""
        key = self.api_key.encode()
        return body.replace(key, b"***") if key and key in body else body

    def _complaint(self, replica: Replica, status: int, body: bytes, kind: str, wait: str | None) -> Exception:
        """Say what an HTTP error means: wait, try again, or give up."""
        message = message_of(body, kind)
        if (status == 429 and "insufficient_quota" not in message) or (status == 503 and wait):
            return _RateLimited(status, _retry_after(wait))
        if status in (400, 413, 422, 500) and _TOO_LONG.search(message):
            return TooLong(message)
        if status >= 500 or status in (408, 409, 425):
            return Transient(f"HTTP {status}: {message}")
        advice = {
            401: f"is the key in {self.asked_for_key} right?",
            403: f"may the key in {self.asked_for_key} use this model?",
            404: f"does it serve {self.model!r}, and does --base-url end in /v1?",
        }.get(status, "the request is not one that this server takes")
        return Refused(f"{replica.url}: HTTP {status}: {message}; {advice}")

    def _http(self) -> aiohttp.ClientSession:
        import aiohttp

        from kt.resolver import SystemResolver

        if self._session is None:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self.api_key:
                headers["Authorization"] = f"Bearer {self.api_key}"
            limits = aiohttp.ClientTimeout(total=self.timeout, sock_connect=CONNECT_SECONDS)
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, resolver=SystemResolver(CONNECT_SECONDS))
            self._session = aiohttp.ClientSession(
                connector=connector, headers=headers, timeout=limits, auto_decompress=True, trust_env=False
            )
        return self._session

    def _mark_down(self, replica: Replica, problem: str) -> None:
        """Take a URL out and look for it in the background: no call waits for it, and none is needed for its return."""
        if not replica.down:
            replica.down, replica.on_trial, replica.problem = True, False, problem
            replica.cool_down = min(2 * replica.cool_down or COOL_DOWN_SECONDS, LONGEST_COOL_DOWN_SECONDS)
            self._watches[replica.url] = asyncio.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        while replica.down:
            await asyncio.sleep(replica.cool_down)
            if await self._lists_models(replica):
                replica.down, replica.on_trial = False, True

    async def _lists_models(self, replica: Replica) -> bool:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS, sock_connect=CONNECT_SECONDS)
            async with self._http().get(replica.url + "/models", timeout=timeout, allow_redirects=False) as reply:
                return reply.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def close(self) -> None:
        """End connections and the search for URLs that are down."""
        for watch in self._watches.values():
            watch.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Unreachable(Exception):
    """Nobody there: this URL is out, another may be tried at once."""


class _RateLimited(Exception):
    """Too much for the server now (429), or nothing for a while (503 with Retry-After): it said how long to wait."""

    def __init__(self, status: int, seconds: float) -> None:
        super().__init__("rate limit (429)" if status == 429 else f"not now ({status})")
        self.seconds = seconds


class TooLong(Exception):
    """The request is longer than the model's context: kept as a rejected completion, no other request suffers."""


def check_url(url: str) -> str:
    """Return a base URL without a closing slash; InputError for what is no HTTP URL or carries a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--base-url {url}: not an HTTP address; give for example http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(f"--base-url {parts.hostname}: put no key or password into the URL; use KT_API_KEY")
    return url.rstrip("/")


def _retry_after(value: str | None) -> float:
    if not value:
        return 2.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 2.0
