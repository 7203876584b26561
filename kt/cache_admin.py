"""Look into a cache, carry it across a gap, join two, check it, and take out what is not wanted. sqlite-utils does the reading.

Row shapes are those of the table `completions` (kt/cache_schema.py).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from kt.cache import COLUMNS, Cache, Row, explain
from kt.errors import InputError
from kt.records import Record, jsonl_writer, read_jsonl

SUMMARY = "substr(key, 1, 16) AS key, status, model, prompt, completion_tokens AS tokens, created, substr(text, 1, 80) AS text"

CONFLICT = "key, model, prompt, status, text, created, response"


def rows(cache: Cache, sql: str, values: Any = ()) -> Iterator[Record]:
    """Yield a query's rows as dicts."""
    from sqlite_utils import Database

    yield from Database(cache.db).query(sql, values)


def stats(cache: Cache) -> Record:
    """Return counts, tokens and dollars by model, prompt and status, the weights known, and the file's size in bytes."""
    grouped = rows(
        cache,
        "SELECT model, revision, prompt, status, count(*) AS completions, sum(prompt_tokens) AS prompt_tokens,"
        " sum(completion_tokens) AS completion_tokens, round(sum(cost), 6) AS cost FROM completions"
        " GROUP BY model, revision, prompt, status ORDER BY model, revision, prompt, status",
    )
    counts = {name: next(rows(cache, f"SELECT count(*) AS n FROM {name}"))["n"] for name in ("completions", "conflicts")}  # noqa: S608
    models = list(rows(cache, "SELECT model, revision, task, first_seen FROM models ORDER BY model, first_seen"))
    size = cache.path.stat().st_size
    return {"file": str(cache.path), "bytes": size, **counts, "groups": list(grouped), "models": models}


def list_rows(cache: Cache, limit: int, **filters: str | None) -> list[Record]:
    """Return a summary of the latest completions, filtered by model, prompt or status."""
    where, values = _where(filters)
    sql = f"SELECT {SUMMARY} FROM completions {where} ORDER BY created DESC, key LIMIT :limit"  # noqa: S608
    return list(rows(cache, sql, {**values, "limit": limit}))


def show(cache: Cache, key: str) -> Record:
    """Return one whole completion by its key or the beginning of it; InputError if none or several begin so."""
    if not key or any(c not in "0123456789abcdef" for c in key):
        raise InputError(f"{key!r} is no key: keys are hex digits, see `kt cache ls`")
    found = list(rows(cache, "SELECT * FROM completions WHERE key >= ? AND key < ? LIMIT 2", (key, key + "g")))
    if len(found) != 1:
        raise InputError(f"{cache.path}: {'no key begins' if not found else 'several keys begin'} with {key}")
    record = found[0]
    return {**record, "request": orjson.loads(record["request"]), "response": _json_or_text(record["response"])}


def search(cache: Cache, text: str, limit: int) -> list[Record]:
    """Return a summary of the completions whose question or answer holds a text, letter case aside for ASCII."""
    pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    inside = orjson.dumps(text).decode()[1:-1].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    sql = (
        f"SELECT {SUMMARY} FROM completions WHERE text LIKE :text ESCAPE '\\' OR request LIKE :inside ESCAPE '\\'"  # noqa: S608
        " ORDER BY created, key LIMIT :limit"
    )
    return list(rows(cache, sql, {"text": pattern, "inside": f"%{inside}%", "limit": limit}))


def export(cache: Cache, path: str | Path, **filters: str | None) -> int:
    """Write completions as JSONL, sorted by key: the same cache gives the same bytes. Returns how many."""
    where, values = _where(filters)
    count = 0
    with jsonl_writer(path) as write:
        for record in rows(cache, f"SELECT {COLUMNS} FROM completions {where} ORDER BY key", values):  # noqa: S608
            write(record)
            count += 1
    return count


@dataclass
class Merged:
    """What a merge did; `conflicts` are keys that had another answer on either side."""

    added: int = 0
    same: int = 0
    conflicts: list[str] = field(default_factory=list)


def import_jsonl(cache: Cache, path: str | Path, *, dry_run: bool = False) -> Merged:
    """Merge completions that `export` wrote."""

    def read() -> Iterator[Row]:
        for number, record in enumerate(read_jsonl(path), 1):
            try:
                row = Row(**{name: record[name] for name in Row._fields})
            except KeyError as error:
                raise InputError(f"{path}:{number}: no {error.args[0]}: not a line that `kt cache export` wrote") from error
            if not isinstance(row.request, str) or hashlib.sha256(row.request.encode()).hexdigest() != row.key:
                raise InputError(f"{path}:{number}: the key is not the hash of the request: the file was changed")
            yield row

    merged = _merge(cache, read(), dry_run)
    if not dry_run:
        with cache.writing() as db:  # a replay finds a model's weights by its name here
            db.execute(
                "INSERT OR IGNORE INTO models (model, revision, task, canary, first_seen) SELECT model, revision,"
                " CASE kind WHEN 'loglikelihood' THEN 'score' WHEN 'generate' THEN 'generate' ELSE 'write' END,"
                " NULL, min(created) FROM completions GROUP BY 1, 2, 3"
            )
    return merged


def merge(cache: Cache, other: Cache, *, dry_run: bool = False) -> Merged:
    """Take in another cache's completions. Commutative and idempotent: either order, once or twice, gives the same rows.

    Of two answers to one key the earlier (then the smaller, as text) stands in `completions`, the other is kept in
    `conflicts`, and the key is reported.
    """
    found = (Row._make(r) for r in other.db.execute(f"SELECT {COLUMNS} FROM completions ORDER BY key"))  # noqa: S608
    merged = _merge(cache, found, dry_run)
    if not dry_run:
        with cache.writing() as db:
            kept = other.db.execute(f"SELECT {CONFLICT} FROM conflicts").fetchall()  # noqa: S608
            db.executemany(f"INSERT OR IGNORE INTO conflicts ({CONFLICT}) VALUES (?, ?, ?, ?, ?, ?, ?)", kept)  # noqa: S608
            _merge_models(db, other.db)
            _drop_settled(db)
    return merged


def _merge_models(db: sqlite3.Connection, other: sqlite3.Connection) -> None:
    found = other.execute("SELECT model, revision, task, canary, first_seen FROM models").fetchall()
    db.executemany(
        "INSERT INTO models (model, revision, task, canary, first_seen) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO"
        " UPDATE SET first_seen = min(first_seen, excluded.first_seen),"
        " canary = CASE WHEN canary IS NULL OR excluded.first_seen < first_seen THEN coalesce(excluded.canary, canary)"
        " ELSE canary END",
        found,
    )


def _drop_settled(db: sqlite3.Connection) -> None:
    """An answer that now stands in `completions` is no loser of a conflict."""
    db.execute(
        "DELETE FROM conflicts WHERE EXISTS (SELECT 1 FROM completions c WHERE c.key = conflicts.key"
        " AND c.created = conflicts.created AND c.response = conflicts.response)"
    )


def _merge(cache: Cache, found: Iterator[Row], dry_run: bool) -> Merged:
    merged = Merged()
    try:
        with cache.writing() as db:
            for row in found:
                _merge_row(db, row, merged)
            if dry_run:
                raise _Undo
    except _Undo:
        pass
    return merged


class _Undo(Exception):
    """Ends a dry run's transaction without a trace."""


def _merge_row(db: sqlite3.Connection, row: Row, merged: Merged) -> None:
    mine = db.execute(f"SELECT {COLUMNS} FROM completions WHERE key = ?", (row.key,)).fetchone()  # noqa: S608
    if mine is None:
        merged.added += 1
        _replace(db, row)
        return
    have = Row._make(mine)
    first, second = sorted((have, row), key=lambda r: (r.created, r.response, r))
    if (have.text, have.status) == (row.text, row.status):
        merged.same += 1
    else:
        merged.conflicts.append(row.key)
        db.execute(
            f"INSERT OR IGNORE INTO conflicts ({CONFLICT}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (second.key, second.model, second.prompt, second.status, second.text, second.created, second.response),
        )
    if first is row:
        _replace(db, row)


def _replace(db: sqlite3.Connection, row: Row) -> None:
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT OR REPLACE INTO completions ({COLUMNS}) VALUES ({marks})", row)  # noqa: S608


def verify(cache: Cache) -> list[str]:
    """Return what is wrong with a cache: a damaged file, a key that is not its request's hash, an unreadable record."""
    try:
        problems = [f"file: {row[0]}" for row in cache.db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        return problems + list(_verify_rows(cache))
    except sqlite3.DatabaseError as error:
        return [str(explain(cache.path, error))]


def _verify_rows(cache: Cache) -> Iterator[str]:
    statuses = {"ok", "empty", "truncated", "refused", "invalid", "too-long"}
    for key, status, request, response in cache.db.execute("SELECT key, status, request, response FROM completions"):
        if hashlib.sha256(request.encode()).hexdigest() != key:
            yield f"{key}: is not the hash of its request"
        if status not in statuses:
            yield f"{key}: unknown status {status!r}"
        if not isinstance(_json_or_text(response), dict | list):
            yield f"{key}: the response is not JSON"


def prune(cache: Cache, *, before: str | None = None, dry_run: bool = False, **filters: str | None) -> int:
    """Remove completions of a model, prompt or status, or made before an ISO date; InputError if nothing narrows it."""
    where, values = _where(filters)
    if before is not None:
        where = f"{where} AND created < :before" if where else "WHERE created < :before"
        values["before"] = before
    if not where:
        raise InputError("prune removes what you name: give --model, --prompt, --status or --before")
    if dry_run:
        count = next(rows(cache, f"SELECT count(*) AS n FROM completions {where}", values))["n"]  # noqa: S608
        return int(count)
    with cache.writing() as db:
        removed = db.execute(f"DELETE FROM completions {where}", values).rowcount  # noqa: S608
        db.execute("DELETE FROM models WHERE NOT EXISTS (SELECT 1 FROM completions c WHERE c.model = models.model)")
    cache.db.execute("VACUUM")
    return removed


def _where(filters: dict[str, str | None]) -> tuple[str, dict[str, Any]]:
    given = {name: value for name, value in filters.items() if value is not None}
    clause = " AND ".join(f"{name} = :{name}" for name in given)
    return (f"WHERE {clause}" if clause else ""), dict(given)


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
