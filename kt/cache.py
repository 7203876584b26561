"""Completions by request key in one SQLite file: get, put, and leases so that no two processes send the same request.

The hot path is plain `sqlite3` statements; the schema's migrations are run by sqlite-utils, only when a file needs them.
A completion is committed before `put` returns (WAL, synchronous=NORMAL: safe against kill -9 at any moment).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from kt.cache_schema import LATEST, migrate
from kt.errors import CacheError, InputError
from kt.records import process_lives
from kt.request import Completion

LEASE_SECONDS = 30.0
"""A process that has not renewed its leases for this long is taken for dead."""

Task = Literal["write", "score", "generate"]
"""What a model is used for: texts and a server's log-probabilities, or scores in this process."""

_SELECT = (
    "SELECT text, status, model, finish_reason, answered_by, prompt_tokens, completion_tokens, cost"
    " FROM completions WHERE key = ?"
)


class Row(NamedTuple):
    """One stored completion, in the order of the table's columns."""

    key: str
    kind: str
    model: str
    revision: str
    sample: int
    prompt: str
    prompt_hash: str
    status: str
    text: str
    finish_reason: str
    answered_by: str
    engine: str
    engine_version: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    latency: float
    created: str
    request: str
    response: str

    def completion(self) -> Completion:
        """Return what a reader of the cache gets to see."""
        return Completion(
            self.key,
            self.text,
            self.status,
            self.model,
            self.finish_reason,
            self.answered_by,
            self.prompt_tokens,
            self.completion_tokens,
            self.cost,
        )


COLUMNS = ", ".join(Row._fields)
_INSERT = f"INSERT OR IGNORE INTO completions ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"  # noqa: S608


class Cache:
    """An open cache file. Not for sharing between threads; any number of processes may open the same file."""

    def __init__(self, path: str | Path, *, read_only: bool = False, busy_seconds: float | None = None) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        self._registered = False
        wait = float(os.environ.get("KT_CACHE_WAIT", "30")) if busy_seconds is None else busy_seconds
        with self._errors():
            self.db = self._open(wait)
            self._prepare()
        self._execute = self.db.execute

    def _open(self, wait: float) -> sqlite3.Connection:
        if self.read_only:
            if not self.path.exists():
                raise CacheError(f"{self.path}: no such cache file; give --cache FILE or set KT_CACHE")
            return _open_read_only(self.path, wait)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{self.path}: cannot be created: {error.strerror}; choose another --cache") from error
        return sqlite3.connect(self.path, timeout=wait, isolation_level=None, cached_statements=64)

    def _prepare(self) -> None:
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > LATEST:
            advice = "upgrade kt, or use another --cache"
            raise CacheError(f"{self.path}: made by a newer kt (format {version}, this one knows {LATEST}); {advice}")
        if not self.read_only:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
        if version < LATEST:
            if self.read_only:
                raise CacheError(f"{self.path}: not a cache of this version; open it once without --backend replay")
            _refuse_foreign_file(self.db, self.path)
            migrate(self.db)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise explain(self.path, error) from error

    def get(self, key: str) -> Completion | None:
        """Return the completion of a key, whatever its status, or None."""
        try:
            found = self._execute(_SELECT, (key,)).fetchone()
        except sqlite3.Error as error:
            raise explain(self.path, error) from error
        return Completion(key, *found) if found else None

    def put(self, rows: Iterable[Row]) -> None:
        """Store rows and end their leases, in one transaction, committed on return. What is there is never replaced."""
        with self.writing() as db:
            put_rows(db, rows)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a write transaction: committed when the block ends, rolled back when it raises."""
        with self._errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    # ---- leases: the same request is sent by one process at a time ---------------------------------------------------

    def heartbeat(self) -> None:
        """Say that this process lives, for another LEASE_SECONDS."""
        with self.writing() as db:
            self._register(db)

    def _register(self, db: sqlite3.Connection) -> None:
        values = (self.holder, socket.gethostname(), os.getpid(), time.time() + LEASE_SECONDS)
        db.execute("INSERT OR REPLACE INTO holders (holder, host, pid, expires) VALUES (?, ?, ?, ?)", values)
        self._registered = True

    def claim(self, db: sqlite3.Connection, key: str) -> bool:
        """Within `writing`: take the lease of a key; False if a living process has it or the answer is there already."""
        if not self._registered:
            self._register(db)
        if db.execute("SELECT 1 FROM completions WHERE key = ?", (key,)).fetchone():
            return False
        if db.execute("INSERT OR IGNORE INTO leases (key, holder) VALUES (?, ?)", (key, self.holder)).rowcount:
            return True
        owner = db.execute("SELECT holder FROM leases WHERE key = ?", (key,)).fetchone()[0]
        if owner != self.holder and self._lives(db, owner):
            return False
        db.execute("UPDATE leases SET holder = ? WHERE key = ?", (self.holder, key))
        return True

    def _lives(self, db: sqlite3.Connection, holder: str) -> bool:
        found = db.execute("SELECT host, pid, expires FROM holders WHERE holder = ?", (holder,)).fetchone()
        if found is None or found[2] < time.time():
            return False
        return found[0] != socket.gethostname() or process_lives(found[1])

    def release(self, keys: Iterable[str]) -> None:
        """Give leases back without an answer."""
        with self.writing() as db:
            db.executemany("DELETE FROM leases WHERE key = ? AND holder = ?", [(key, self.holder) for key in keys])

    # ---- which weights a name stood for ------------------------------------------------------------------------------

    def revisions(self, model: str, task: Task) -> list[str]:
        """Return the revisions under which a model's name has done a task, the latest seen last."""
        sql = "SELECT revision FROM models WHERE model = ? AND task = ? ORDER BY first_seen"
        with self._errors():
            return [row[0] for row in self.db.execute(sql, (model, task))]

    def canary(self, model: str, revision: str, task: Task) -> str | None:
        """Return what the model said to the fixed question that tells weights apart, or None if it was never asked."""
        sql = "SELECT canary FROM models WHERE model = ? AND revision = ? AND task = ?"
        with self._errors():
            row = self.db.execute(sql, (model, revision, task)).fetchone()
        return cast("str | None", row[0]) if row else None

    def remember_model(self, model: str, revision: str, task: Task, canary: str | None) -> None:
        """Record that a name with this revision answered, and how it answers the fixed question."""
        with self.writing() as db:
            db.execute(
                "INSERT INTO models (model, revision, task, canary, first_seen) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (model, revision, task) DO UPDATE SET canary = coalesce(models.canary, excluded.canary)",
                (model, revision, task, canary, now()),
            )

    def reopen(self) -> None:
        """In a forked process, open the file anew for reading: the first process's connection is left to it, unclosed."""
        self._inherited = self.db
        with self._errors():
            self.db = _open_read_only(self.path, 30.0)
        self._execute = self.db.execute

    def close(self) -> None:
        """Give back every lease and close the file."""
        with contextlib.suppress(CacheError, sqlite3.Error):
            if self._registered:
                with self.writing() as db:
                    db.execute("DELETE FROM leases WHERE holder = ?", (self.holder,))
                    db.execute("DELETE FROM holders WHERE holder = ? OR expires < ?", (self.holder, time.time() - 3600))
        self.db.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        self.close()
        if isinstance(error, sqlite3.Error):
            raise explain(self.path, error) from error


def put_rows(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Within `Cache.writing`: store rows and end their leases."""
    rows = list(rows)
    db.executemany(_INSERT, rows)
    db.executemany("DELETE FROM leases WHERE key = ?", [(row.key,) for row in rows])


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the microsecond: it sorts as text."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def explain(path: Path, error: sqlite3.Error) -> CacheError:
    """Say what a failure of SQLite means for the user."""
    text = str(error)
    if "locked" in text or "busy" in text:
        todo = "another process holds it (a shell, a backup?): end that, or raise KT_CACHE_WAIT (seconds)"
    elif "full" in text or "disk I/O" in text:
        todo = "the disk is full or failing: free some space and run again; what was received is kept"
    elif "not a database" in text or "malformed" in text:
        todo = f"the file is damaged: move it away, then save what can be saved: sqlite3 {path} .recover"
    elif "readonly" in text or "unable to open" in text:
        todo = "it cannot be written here: check its permissions, or choose another --cache"
    else:
        todo = "run `kt cache verify` to see what is wrong with it"
    return CacheError(f"{path}: {text}; {todo}")


def _open_read_only(path: Path, wait: float) -> sqlite3.Connection:
    """Open without writing; on a medium that takes no side files (a disk carried over) as unchanging."""
    uri = path.resolve().as_uri()
    try:
        db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=wait, isolation_level=None)
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, timeout=wait, isolation_level=None)
    return db


def _refuse_foreign_file(db: sqlite3.Connection, path: Path) -> None:
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "completions" not in tables and "_sqlite_migrations" not in tables:
        raise InputError(f"{path}: a database, but no kt cache (tables: {', '.join(sorted(tables))}); give another --cache")
