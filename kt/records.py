"""Records as JSONL, in and out, side by side; files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from kt.errors import InputError, OutputError

Record = dict[str, Any]


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) for each line of a JSONL file; InputError names the line that is not JSON."""
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


def read_jsonl(path: str | Path) -> Iterator[Record]:
    """Yield the records of a JSONL file; InputError names file and line."""
    try:
        for where, record in read_lines(Path(path)):
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


def check_folder(out: Path) -> None:
    """Fail before the first call if an output folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise output_error(out, error) from error


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


def input_hashes(places: Iterable[str]) -> dict[str, str]:
    """Return the hashes of input files by name without folder, so that they are alike on every machine.

    A second file of the same name is NAME-2; "-", standard input, has none.
    """
    found: dict[str, str] = {}
    times: Counter[str] = Counter()
    for place in places:
        if place != "-":
            times[name := Path(place).name] += 1
            found[name if times[name] == 1 else f"{name}-{times[name]}"] = file_hash(place)
    return found


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex; a file that has not changed is read once."""
    about = os.stat(path)
    return _file_hash(str(path), about.st_size, about.st_mtime_ns, about.st_ino)


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, _size: int, _changed: int, _inode: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
