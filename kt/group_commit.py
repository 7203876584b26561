"""Many waiting writes, one transaction: what one turn of the event loop has to store is committed together."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

from kt.cache import Cache, Row, explain, put_rows


class GroupCommit:
    """Writes of one turn of the loop go to disk in one transaction; each caller goes on once it is committed."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.rows: list[tuple[Row, asyncio.Future[None]]] = []
        self.claims: list[tuple[str, asyncio.Future[bool]]] = []
        self.scheduled = False

    def put(self, row: Row) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._schedule()
        self.rows.append((row, future))
        return future

    def claim(self, key: str) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = self._schedule()
        self.claims.append((key, future))
        return future

    def _schedule(self) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self.scheduled:
            self.scheduled = True
            loop.call_soon(self._flush)
        return loop.create_future()

    def _flush(self) -> None:
        rows, claims = self.rows, self.claims
        self.rows, self.claims, self.scheduled = [], [], False
        try:
            with self.cache.writing() as db:
                put_rows(db, [row for row, _ in rows])
                won = [self.cache.claim(db, key) for key, _ in claims]
        except Exception as error:
            problem = explain(self.cache.path, error) if isinstance(error, sqlite3.Error) else error
            waiting: list[asyncio.Future[Any]] = [*(future for _, future in rows), *(future for _, future in claims)]
            for future in waiting:
                if not future.done():
                    future.set_exception(problem)
            return
        for _, written in rows:
            if not written.done():
                written.set_result(None)
        for (_, claimed), result in zip(claims, won, strict=True):
            if not claimed.done():
                claimed.set_result(result)
