"""Question-answer items in from any common file format; JSONL in and out; atomic writes."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from kt.errors import InputError, OutputError

Record = dict[str, Any]

MAX_ANSWER_CHARS = 200_000
"""An answer longer than this (about 50,000 tokens) fits no model's context and is rejected before any call."""

KNOWN_COLUMNS = "instruction/output, prompt/completion, prompt/chosen, question/answer or messages"


class Read(NamedTuple):
    """One thing read from a file: an item, or a reject with its reason. `where` is file:line or file item N."""

    where: str
    item: Record | None
    reason: str = ""
    raw: Any = None


# ---- items in ----------------------------------------------------------------------------------------------------


def read_items(paths: Iterable[str | Path], limit: int | None = None) -> Iterator[Read]:
    """Yield every item of the files in order, as {"id", "question", "answer"} or as a reject with its reason.

    Accepts JSON lists and JSONL of Alpaca, TRL (prompt/completion, prompt/chosen), question/answer and chat `messages`
    records; "-" is standard input. An item without an id is named after its content, so that shuffling a file or
    editing another item does not rename it; an exact repeat gets "-2", "-3". `limit` counts items, not rejects.
    Raises InputError for a file that is missing, empty, not JSON, or of unknown columns, and for one id given twice.
    """
    names = _Names()
    count = 0
    for path in paths:
        for where, raw in read_raw(path):
            if limit is not None and count >= limit:
                return
            read = _item(where, raw, names)
            count += read.item is not None
            yield read


def read_raw(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) for each element of a JSON list or line of a JSONL file, never holding the whole file."""
    if str(path) == "-":
        yield from _read_stdin()
        return
    source = Path(path)
    try:
        with source.open("rb") as stream:
            head = _first_byte(stream)
            if not head:
                raise InputError(f"{path}: the file is empty; give a JSON list or JSONL of questions and answers")
            reader = _read_json_list if head == b"[" else _read_lines
            seen = False
            for found in reader(source):
                seen = True
                yield found
            if not seen:
                raise InputError(f"{path}: the file holds no items; give a JSON list or JSONL of questions and answers")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path given to --data") from error


def _read_stdin() -> Iterator[tuple[str, Any]]:
    with tempfile.NamedTemporaryFile(prefix="kt-stdin-", suffix=".json") as spool:
        while block := sys.stdin.buffer.read(1 << 20):
            spool.write(block)
        spool.flush()
        for where, raw in read_raw(spool.name):
            yield where.replace(spool.name, "<stdin>"), raw


def _first_byte(stream: Any) -> bytes:
    start = stream.read(3)
    stream.seek(3 if start == b"\xef\xbb\xbf" else 0)
    while (byte := stream.read(1)).isspace():
        pass
    return bytes(byte)


def _read_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    import ijson

    with path.open("rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)
        try:
            for number, raw in enumerate(ijson.items(stream, "item", use_float=True), 1):
                yield f"{path} item {number}", raw
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(_explain_bad_json(path, error)) from error


def _explain_bad_json(path: Path, error: Exception) -> str:
    """Say line and column, which the streaming reader does not know."""
    try:
        json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as exact:
        return f"{path}:{exact.lineno}: not JSON: {exact.msg} (column {exact.colno}); nothing was written"
    except UnicodeDecodeError as exact:
        return f"{path}: not UTF-8 at byte {exact.start}; convert the file to UTF-8"
    return f"{path}: not JSON: {str(error).splitlines()[0]}"


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            if line.isspace():
                continue
            try:
                yield f"{path}:{number}", orjson.loads(line)
            except orjson.JSONDecodeError as error:
                advice = "give a JSON list, or JSONL with one record a line"
                raise InputError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno}); {advice}") from error


class _Names:
    """Gives every item its id and remembers 64 bits of each, so that memory stays flat over large files."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def count(self, name: str) -> int:
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        self.seen[digest] = self.seen.get(digest, 0) + 1
        return self.seen[digest]

    def name(self, where: str, given: Any, question: str, answer: str) -> str:
        if given is not None and given != "":
            name = str(given)
            if self.count(f"given:{name}") > 1:
                raise InputError(f"{where}: the id {name!r} was given to an earlier item too; ids must differ")
            return name
        digest = hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        times = self.count(digest)
        return digest if times == 1 else f"{digest}-{times}"


def _item(where: str, raw: Any, names: _Names) -> Read:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a {type(raw).__name__}, not a record; expected columns {KNOWN_COLUMNS}")
    found = question_and_answer(raw)
    if found is None:
        columns = ", ".join(map(str, raw)) or "none"
        raise InputError(f"{where}: columns {columns}; expected {KNOWN_COLUMNS}")
    question, answer = found
    if reason := _unusable(question, answer):
        return Read(where, None, reason, raw)
    name = names.name(where, raw.get("id"), question, answer)
    return Read(where, {"id": name, "question": question, "answer": answer})


def question_and_answer(raw: Record) -> tuple[Any, Any] | None:
    """Return the question and the answer of a record of any known columns, or None if its columns are unknown.

    Of a ranked pair the better answer is taken; of `messages` the one user turn (after a system turn, if any) and the
    assistant's turn. What is there but unusable (a missing answer, a second turn) is returned as None in its place.
    """
    if "instruction" in raw and "output" in raw:
        output = raw["output"]
        answer = output[0] if isinstance(output, list) and output else output
        extra = raw.get("input") or ""
        question = raw["instruction"]
        return (f"{question}\n{extra}" if extra and isinstance(question, str) else question), answer
    if "question" in raw and "answer" in raw:
        return raw["question"], raw["answer"]
    if "prompt" in raw and ("completion" in raw or "chosen" in raw):
        return _last_text(raw["prompt"]), _last_text(raw["completion"] if "completion" in raw else raw["chosen"])
    if isinstance(raw.get("messages"), list):
        return _of_messages(raw["messages"])
    return None


def _last_text(value: Any) -> Any:
    if isinstance(value, list):
        return value[-1].get("content") if len(value) == 1 and isinstance(value[-1], dict) else None
    return value


def _of_messages(messages: list[Any]) -> tuple[Any, Any]:
    turns = [m for m in messages if isinstance(m, dict) and m.get("role") != "system"]
    if [t.get("role") for t in turns] != ["user", "assistant"]:
        return None, None
    return turns[0].get("content"), turns[1].get("content")


def _unusable(question: Any, answer: Any) -> str:
    """Say why an item cannot be used, or return the empty string."""
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str):
            return f"no single {name} as text"
        if not value.strip():
            return f"empty {name}"
        if "\0" in value:
            return f"NUL byte in the {name}"
        if len(value) > MAX_ANSWER_CHARS:
            return f"{name} of {len(value)} characters; at most {MAX_ANSWER_CHARS} fit a model's context"
        if not value.isascii() and not _encodable(value):
            return f"{name} holds a lone surrogate, which is not text"
    return ""


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- JSONL in and out ----------------------------------------------------------------------------------------------


def read_jsonl(path: str | Path) -> Iterator[Record]:
    """Yield the records of a JSONL file; InputError names file and line."""
    try:
        for where, record in _read_lines(Path(path)):
            if not isinstance(record, dict):
                raise InputError(f"{where}: a {type(record).__name__}, not a record")
            yield record
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def follow(first: Iterable[Record], *others: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Read files side by side: each record of the first with those of the same id in the others, or None.

    The others stand in the first one's order and lack only what was rejected on its way.
    """
    streams = [iter(records) for records in others]
    heads: list[Record | None] = [next(stream, None) for stream in streams]
    for record in first:
        found: list[Record | None] = [None] * len(streams)
        for place, head in enumerate(heads):
            if head is not None and head["id"] == record["id"]:
                found[place], heads[place] = head, next(streams[place], None)
        yield (record, *found)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Any]:
    """Open a binary file that takes its name only when the block ends well; OutputError on a full or read-only disk.

    Not synced to the disk: whatever a power cut takes is made again from the cache.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        with draft.open("wb", buffering=1 << 18) as stream:
            yield stream
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise output_error(target, error) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _remove_abandoned(target: Path) -> None:
    """Remove the drafts of this file that processes left which were killed."""
    for draft in target.parent.glob(f".{target.name}.*.part"):
        owner = draft.suffixes[-2].lstrip(".")
        if owner.isdigit() and not process_lives(int(owner)):
            draft.unlink(missing_ok=True)


def process_lives(pid: int) -> bool:
    """Say whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def output_error(path: str | Path, error: OSError) -> OutputError:
    """Turn the system's error into a sentence that says what to do."""
    advice = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "choose another --out"}
    todo = advice.get(error.errno or 0, "check its permissions, or choose another --out")
    return OutputError(f"{path}: cannot be written: {error.strerror}; {todo} and run again: nothing received is lost")


@contextlib.contextmanager
def jsonl_writer(path: str | Path) -> Iterator[Callable[[Record], None]]:
    """Give a function that appends one record to a JSONL file, which appears whole or not at all."""
    with atomic_file(path) as stream:
        write = stream.write
        yield lambda record: write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def write_jsonl(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSONL, atomically; return how many."""
    count = 0
    with jsonl_writer(path) as write:
        for record in records:
            write(record)
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON value, indented, atomically."""
    with atomic_file(path) as stream:
        stream.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@contextlib.contextmanager
def json_list_writer(path: str | Path) -> Iterator[Callable[[bytes], None]]:
    """Give a function that appends one record, encoded, to a JSON list, which appears whole or not at all."""
    with atomic_file(path) as stream:
        separator = b"[\n"

        def write(record: bytes) -> None:
            nonlocal separator
            stream.write(separator)
            stream.write(record)
            separator = b",\n"

        yield write
        stream.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex; a file that has not changed is read once."""
    about = os.stat(path)
    return _file_hash(str(path), about.st_size, about.st_mtime_ns, about.st_ino)


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, _size: int, _changed: int, _inode: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
