"""The cache's tables as numbered migrations, run by sqlite-utils and recorded in the file itself."""

from __future__ import annotations

import sqlite3
import time

LATEST = 1
"""The file's PRAGMA user_version once every migration has run: opening an up-to-date file loads no sqlite-utils."""

_FIRST = """
CREATE TABLE completions (
    key TEXT PRIMARY KEY,          -- SHA-256 of `request`
    kind TEXT NOT NULL,            -- chat | completions | generate | loglikelihood
    model TEXT NOT NULL,           -- the name asked for
    revision TEXT NOT NULL,        -- which weights: a fingerprint, or what the user called them
    sample INTEGER NOT NULL,       -- 0, then 1, 2 ... for requests repeated on purpose
    prompt TEXT NOT NULL,          -- name of the prompt file
    prompt_hash TEXT NOT NULL,
    status TEXT NOT NULL,          -- ok | empty | truncated | refused | invalid | too-long; only ok is ever served
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    answered_by TEXT NOT NULL,     -- the model that the server says answered
    engine TEXT NOT NULL,
    engine_version TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,            -- dollars
    latency REAL NOT NULL,         -- seconds
    created TEXT NOT NULL,         -- UTC
    request TEXT NOT NULL,         -- canonical JSON: what the key hashes
    response TEXT NOT NULL         -- as received
);
CREATE TABLE conflicts (
    key TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL, status TEXT NOT NULL, text TEXT NOT NULL,
    created TEXT NOT NULL, response TEXT NOT NULL,
    PRIMARY KEY (key, created, response)
);
CREATE TABLE leases (key TEXT PRIMARY KEY, holder TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE holders (holder TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, expires REAL NOT NULL);
CREATE TABLE models (
    model TEXT NOT NULL, revision TEXT NOT NULL,
    task TEXT NOT NULL,            -- write | score | generate: a model of one name may do each with weights of its own
    canary TEXT,                   -- its answer to a fixed question
    first_seen TEXT NOT NULL,
    PRIMARY KEY (model, revision, task)
);
"""


def migrate(db: sqlite3.Connection) -> None:
    """Bring a file to the latest format; two processes may do so at once."""
    import sqlite_utils
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("kt")

    @migrations(name="1_completions")
    def _completions(database: sqlite_utils.Database) -> None:
        for statement in _FIRST.split(";\n"):
            if statement.strip():
                database.execute(statement)
        database.execute("PRAGMA user_version = 1")

    for tries in range(50):
        try:
            migrations.apply(sqlite_utils.Database(db))
            return
        except sqlite3.OperationalError:  # another process is at the same migration: look again
            if db.in_transaction:
                db.execute("ROLLBACK")
            if tries == 49:
                raise
            time.sleep(0.1)
