"""Host names through the system's own resolver, in threads that nobody waits for.

Python and uvloop join their resolver threads at exit: a DNS server that never answers would hold a finished command for ten
seconds. c-ares (aiodns) would not, but knows only DNS and the hosts file, not the names a lab's nsswitch.conf adds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class SystemResolver(AbstractResolver):
    """Resolves as the system does; the caller's time-out is kept, and so is the process's end."""

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
            found: list[Any] | OSError
            try:
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as error:
                found = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, found)

        threading.Thread(target=look_up, daemon=True, name=f"resolve {host}").start()
        return [_result(host, entry) for entry in await answer]

    async def close(self) -> None:
        """Nothing is held."""


def _result(host: str, entry: Any) -> ResolveResult:
    family, _, proto, _, address = entry
    return ResolveResult(
        hostname=host, host=address[0], port=address[1], family=family, proto=proto, flags=socket.AI_NUMERICHOST
    )
