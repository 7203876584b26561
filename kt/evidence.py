"""A local document collection to check facts against: passages in an SQLite FTS5 index, ranked by BM25."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kt.errors import InputError
from kt.records import read_jsonl

PASSAGE_WORDS = 150
"""Paragraphs are joined up to about this many words: several passages fit any judge's context."""

SUFFIXES = (".jsonl", ".md", ".txt")


class Passage(NamedTuple):
    """A piece of a document; `place` is its file and number."""

    place: str
    text: str


class Collection:
    """The passages of text files, and of JSONL files with "text" (and perhaps "title"). Use as a context manager."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._base = sqlite3.connect("")  # on disk, with a name that only SQLite knows, gone when closed
        self._base.execute("CREATE VIRTUAL TABLE passages USING fts5(text, place UNINDEXED, tokenize = 'porter unicode61')")
        for path in paths:
            for name, file in files_of(path).items():
                rows = ((passage.text, passage.place) for passage in _cut(name, file))
                self._base.executemany("INSERT INTO passages (text, place) VALUES (?, ?)", rows)
        if not self._base.execute("SELECT count(*) FROM passages").fetchone()[0]:
            raise InputError(f"{', '.join(map(str, paths))}: no text to check facts against")

    def search(self, text: str, count: int) -> list[Passage]:
        """Return the passages nearest to a text by its words, best first; none if no word of it occurs."""
        words = dict.fromkeys(re.findall(r"\w+", text.casefold()))
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        sql = "SELECT place, text FROM passages WHERE passages MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [Passage(*row) for row in self._base.execute(sql, (query, count))]

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()


def files_of(place: str | Path) -> dict[str, Path]:
    """Return the documents of a folder, or the one file, by their names from that folder on; InputError if there are none."""
    path = Path(place)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        found = {f"{path.resolve().name}/{file.relative_to(path)}": file for file in files}
    else:
        found = {path.name: path} if path.is_file() else {}
    if not found:
        raise InputError(f"--evidence {path}: no file or folder with {', '.join(SUFFIXES)} files; or say gold or none")
    return found


def _cut(name: str, file: Path) -> Iterator[Passage]:
    number = 0
    for text in _documents(file):
        for piece in _pieces(text):
            number += 1
            yield Passage(f"{name}:{number}", piece)


def _documents(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        for record in read_jsonl(file):
            if not isinstance(record.get("text"), str):
                raise InputError(
                    f'{file}: a record without "text" ({", ".join(record)}); a document has "text", perhaps "title"'
                )
            yield f"{record['title']}\n\n{record['text']}" if record.get("title") else record["text"]
        return
    try:
        yield file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text: {error}") from error


def _pieces(text: str) -> Iterator[str]:
    """Join paragraphs up to PASSAGE_WORDS; a longer paragraph is cut between words."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\0", " ")):
        words = paragraph.split()
        while words:
            if held and len(held) + len(words) > PASSAGE_WORDS:
                yield " ".join(held)
                held = []
            held, words = held + words[:PASSAGE_WORDS], words[PASSAGE_WORDS:]
    if held:
        yield " ".join(held)
