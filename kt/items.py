"""Questions and answers in from any common file format, by streaming; every item with an id and a place."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kt.errors import InputError
from kt.records import Record, read_lines

MAX_ANSWER_CHARS = 200_000
"""An answer longer than this (about 50,000 tokens) fits no model's context and is rejected before any call."""

KNOWN_COLUMNS = "instruction/output, prompt/completion, prompt/chosen, question/answer or messages"


class Read(NamedTuple):
    """One thing read from a file: an item, or a reject with its reason. `where` is file:line or file item N."""

    where: str
    item: Record | None
    reason: str = ""
    raw: Any = None


def read_items(paths: Iterable[str | Path], limit: int | None = None, *, answered: bool = True) -> Iterator[Read]:
    """Yield every item of the files in order, as {"id", "question", "answer"} or as a reject with its reason.

    Accepts JSON lists and JSONL of Alpaca, TRL (prompt/completion, prompt/chosen), question/answer and chat `messages`
    records; "-" is standard input. An item without an id is named after its content, so that shuffling a file or
    editing another item does not rename it; an exact repeat gets "-2", "-3". `limit` counts items, not rejects.
    Unless `answered`, a record with no place for an answer is an item too, without "answer".
    Raises InputError for a file that is missing, empty, not JSON, or of unknown columns, and for one id given twice.
    """
    names = _Names()
    count = 0
    for path in paths:
        for where, raw in read_raw(path):
            if limit is not None and count >= limit:
                return
            read = _item(where, raw, names, answered)
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
            reader = _read_json_list if head == b"[" else read_lines
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
        if _second_byte(stream) == b"[":  # said before the reader, whose memory grows with depth, walks into it
            raise InputError(f"{path} item 1: a list, not a record; expected columns {KNOWN_COLUMNS}")
        try:
            for number, raw in enumerate(ijson.items(stream, "item", use_float=True), 1):
                yield f"{path} item {number}", raw
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(_explain_bad_json(path, error)) from error


def _second_byte(stream: Any) -> bytes:
    """Return the first byte after the opening bracket that is no space; the stream stays where it is."""
    place = stream.tell()
    for _ in range(2):
        while (byte := stream.read(1)).isspace():
            pass
    stream.seek(place)
    return bytes(byte)


def _explain_bad_json(path: Path, error: Exception) -> str:
    """Say line and column, which the streaming reader does not know."""
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as exact:
        return f"{path}:{exact.lineno}: not JSON: {exact.msg} (column {exact.colno}); nothing was written"
    except UnicodeDecodeError as exact:
        return f"{path}: not UTF-8 at byte {exact.start}; convert the file to UTF-8"
    except RecursionError:
        return f"{path}: lists or records nested hundreds deep; expected columns {KNOWN_COLUMNS}"
    for number, row in enumerate(rows, 1):
        if any(isinstance(value, int) and value.bit_length() > 63 for value in (row.values() if isinstance(row, dict) else ())):
            return f"{path} item {number}: a number of more than 64 bits; write it as text, in quotes"
    return f"{path}: not JSON: {str(error).splitlines()[0]}"


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
            if not isinstance(given, str | int) or isinstance(given, bool):
                kind = type(given).__name__
                raise InputError(f"{where}: an id that is a {kind}; give text or a whole number of at most 64 bits")
            name = str(given)
            if self.count(f"given:{name}") > 1:
                raise InputError(f"{where}: the id {name!r} was given to an earlier item too; ids must differ")
            return name
        digest = hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        times = self.count(digest)
        return digest if times == 1 else f"{digest}-{times}"


def _item(where: str, raw: Any, names: _Names, answered: bool) -> Read:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a {type(raw).__name__}, not a record; expected columns {KNOWN_COLUMNS}")
    found = question_and_answer(raw)
    texts = dict(zip(("question", "answer"), found, strict=True)) if found else None
    if not answered and found in (None, (None, None)):
        texts = _question_alone(raw) or texts
    if texts is None:
        columns = ", ".join(map(str, raw)) or "none"
        raise InputError(f"{where}: columns {columns}; expected {KNOWN_COLUMNS}")
    if reason := _unusable(texts):
        return Read(where, None, reason, raw)
    return Read(where, {"id": names.name(where, raw.get("id"), texts["question"], texts.get("answer", "")), **texts})


def _question_alone(raw: Record) -> Record | None:
    """Return the question of a record that has no place for an answer, or None if its columns are unknown."""
    if "instruction" in raw:
        question, extra = raw["instruction"], raw.get("input")
        return {"question": f"{question}\n{extra}" if extra and isinstance(question, str) else question}
    if isinstance(turns := raw.get("messages"), list):
        asked = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") != "system"]
        return {"question": asked[0].get("content")} if [turn.get("role") for turn in asked] == ["user"] else None
    name = next((name for name in ("question", "prompt") if name in raw), None)
    return {"question": _last_text(raw[name])} if name else None


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


def _unusable(texts: Record) -> str:
    """Say why an item cannot be used, or return the empty string."""
    for name, value in texts.items():
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
