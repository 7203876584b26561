"""Host names through the system's own resolver, in threads that nobody waits for.

Python and uvloop join their resolver threads at exit: a DNS server that never answers would hold a finished command for ten
seconds. c-ares (aiodns) would not, but knows only DNS and the hosts file, not the names a lab's nsswitch.conf adds.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class SystemResolver(AbstractResolver):
    """Resolves as the system does, but waits `seconds` at most, and never holds the process at its end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return the addresses of a host; OSError if there are none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def settle(found: list[Any] | OSError) -> None:
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            said: list[Any] | OSError
            try:
                said = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as error:
                said = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, said)

        threading.Thread(target=look_up, daemon=True, name=f"resolve {host}").start()
        try:
            found = await asyncio.wait_for(answer, self.seconds)
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, f"no name server answered within {self.seconds} s") from error
        return [_result(host, entry) for entry in found]

    async def close(self) -> None:
        """Nothing is held."""


def _result(host: str, entry: Any) -> ResolveResult:
    family, _, proto, _, address = entry
    return ResolveResult(
        hostname=host, host=address[0], port=address[1], family=family, proto=proto, flags=socket.AI_NUMERICHOST
    )
