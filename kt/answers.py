"""Generated answers beside the test items they belong to: the same questions for every method, or a clear error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.intervals import mean, ratio
from kt.items import MAX_ANSWER_CHARS, read_items
from kt.records import Record, read_jsonl

SHOWN = 3
_REFUSAL = re.compile(
    r"\W*(i['’]?m sorry|sorry|i apologi[sz]e|unfortunately)?\W*(but\W+)?"
    r"(as an ai\b|(i['’]?m|i am) (not able|unable) to\b"
    r"|i (cannot|can['’]?t|can not|won['’]?t|will not|could not|couldn['’]?t)( \w+ly)?( be able to)?"
    r" (answer|assist|comment|complete|comply|confirm|determine|discuss|find|fulfil|give|help|identify|offer|provide|say|share"
    r"|tell|verify)\b"
    r"|i (do not|don['’]?t|did not|didn['’]?t)"
    r" (know|have (access|any|enough|information|knowledge|data|details|sufficient)|find any)\b"
    r"|i have no (information|knowledge|idea|data|access)\b)",
    re.I,
)


def is_refusal(answer: str) -> bool:
    """Say whether an answer begins by declining to answer, in the usual English words."""
    return _REFUSAL.match(answer) is not None


def read_answers(name: str, place: str | Path) -> dict[str, Record]:
    """Read a method's answers, by id: a folder with records.jsonl as `kt generate` writes it, or such a file."""
    path = Path(place)
    path = path / "records.jsonl" if path.is_dir() else path
    found: dict[str, Record] = {}
    for record in read_jsonl(path):
        name_of = record.get("id")
        if isinstance(name_of, bool) or not isinstance(name_of, str | int) or not isinstance(record.get("answer"), str):
            raise InputError(f"{path}: a record without id or answer ({', '.join(record)}); expected id, question, answer")
        record["id"] = item = str(name_of)  # as items have it
        if item in found:
            raise InputError(f"{path}: two answers for {item}; each question has one")
        if "\0" in record["answer"] or len(record["answer"]) > MAX_ANSWER_CHARS:
            raise InputError(f"{path}: the answer for {item} holds a NUL byte or is over {MAX_ANSWER_CHARS} characters")
        found[item] = record
    if not found:
        raise InputError(f"{path}: no answers of {name}; run `kt generate` first")
    return found


def join(
    data: Sequence[str],
    answers: Mapping[str, Mapping[str, Record]],
    limit: int | None,
    reject: Callable[[Record], object],
) -> Iterator[Record]:
    """Yield {"id", "question", "gold", "answers": {name: text}} for every test item, at most `limit`.

    Items that cannot be used (no gold answer, for example) go to `reject` with the reason. Raises InputError, naming ids,
    if a method lacks an answer, answers what was not asked, or was asked another question.
    """
    known: set[str] = set()
    lacking: dict[str, list[str]] = {name: [] for name in answers}
    count = 0
    for read in read_items(data):
        if read.item is None:
            reject({"where": read.where.rsplit("/", 1)[-1], "step": "items", "reason": read.reason, "record": read.raw})
            if isinstance(read.raw, dict) and "id" in read.raw:
                known.add(str(read.raw["id"]))
            continue
        item = read.item
        known.add(item["id"])
        if limit is not None and count >= limit:
            continue
        count += 1
        given = {name: found[item["id"]] for name, found in answers.items() if item["id"] in found}
        for name in answers.keys() - given.keys():
            lacking[name].append(item["id"])
        if len(given) == len(answers):
            _check_questions(item, given)
            texts = {name: record["answer"] for name, record in given.items()}
            yield {"id": item["id"], "question": item["question"], "gold": item["answer"], "answers": texts}
    _check_sets(answers, known, lacking, count)


def _check_questions(item: Record, given: Mapping[str, Record]) -> None:
    for name, record in given.items():
        asked = str(record.get("question", item["question"]))
        if asked != item["question"]:
            raise InputError(
                f"{name}: item {item['id']} was asked {asked[:60]!r}, the test data ask {item['question'][:60]!r};"
                " compare answers to the same file"
            )


def _check_sets(
    answers: Mapping[str, Mapping[str, Record]], known: set[str], lacking: Mapping[str, Sequence[str]], count: int
) -> None:
    for name, found in answers.items():
        if lacking[name]:
            raise InputError(
                f"{name}: no answer for {len(lacking[name])} of {count} test items ({_some(lacking[name])}): every method must"
                " answer the same items; run `kt generate` for them, or see its rejected.jsonl"
            )
        if strangers := [id_ for id_ in found if id_ not in known]:
            raise InputError(
                f"{name}: {len(strangers)} answers to questions that the test data do not hold ({_some(strangers)});"
                " give --data the file that the answers were generated from"
            )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def figures(items: Sequence[Record], name: str, seed: int) -> dict[str, Any]:
    """Return what stands beside every number of a method: how many answers, their words, refusals and empty ones."""
    texts = [item["answers"][name] for item in items]
    refused = [int(is_refusal(text)) for text in texts]
    return {
        "answers": len(texts),
        "words": mean([float(len(text.split())) for text in texts], seed, f"words:{name}"),
        "refusals": {"count": sum(refused), **ratio(refused, [1] * len(texts), seed, f"refusals:{name}")},
        "empty": sum(not text.strip() for text in texts),
    }
