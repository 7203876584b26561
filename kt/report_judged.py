"""What judges said of each test item's answers, for a report to lay side by side: verdicts, scores, facts, their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from kt.judge import OPPOSITE, outcome_of
from kt.records import Record, read_jsonl

REJECTED = "rejected"
"""Stands for the outcome of a comparison, or the verdict on a fact, for which the judge gave none."""


def read_judged(folder: Path, results: Record) -> list[Record]:
    """Return an evaluation's test items with all that was measured of each answer.

    Each is {"id", "question", "gold", "answers": {name: text}, "metrics": {name: {metric: value}}, "scores": {name: [...]},
    "facts": {name: [...]}, "verdicts": [...], "why": [...]}; "said" is a judge's own text, or what was wrong with it.
    """
    items = {item["id"]: _empty(item) for item in _records(folder, "items")}
    for row in _records(folder, "metrics"):
        items[row["item"]]["metrics"][row["name"]] = {k: v for k, v in row.items() if k not in ("id", "item", "name")}
    for number, one in enumerate(results.get("judges", [])):
        step = f"judge-{number + 1}" if number else "judge"
        for id_, verdict in _verdicts(folder, step, one["judge"], results["settings"]["rule"]):
            items[id_]["verdicts"].append(verdict)
    for id_, name, score in _scores(folder):
        items[id_]["scores"].setdefault(name, []).append(score)
    for id_, name, facts in _facts(folder):
        items[id_]["facts"][name] = facts
    for reject in _rejects(folder, "split"):
        items[reject["record"]["item"]]["why"].append([reject["record"]["name"], reject["reason"]])
    return list(items.values())


def _empty(item: Record) -> Record:
    lists: Record = {"metrics": {}, "scores": {}, "facts": {}, "verdicts": [], "why": []}
    return {**{key: item[key] for key in ("id", "question", "gold", "answers")}, **lists}


def _records(folder: Path, step: str, name: str = "records") -> Iterator[Record]:
    path = folder / step / f"{name}.jsonl"
    if path.exists():
        yield from read_jsonl(path)


def _rejects(folder: Path, step: str) -> Iterator[Record]:
    return _records(folder, step, "rejected")


def _verdicts(folder: Path, step: str, judge: str, rule: Any) -> Iterator[tuple[str, Record]]:
    """Yield (item, verdict): the outcome for `one`, what was said in either order, and by whom it was decided."""
    for record in _records(folder, step):
        made = {"judge": judge, **{key: record[key] for key in ("criterion", "one", "other", "verdicts", "decided_by")}}
        said = [own_words(text) for text in record["texts"]]
        yield record["item"], {**made, "outcome": outcome_of(record["verdicts"], rule), "said": said}
    for reject in _rejects(folder, step):
        record = reject["record"]
        made = {"judge": judge, **{key: record[key] for key in ("criterion", "one", "other")}}
        yield record["item"], {**made, "verdicts": [], "decided_by": "", "outcome": REJECTED, "said": [reject["reason"]]}


def _scores(folder: Path) -> Iterator[tuple[str, str, Record]]:
    for record in _records(folder, "score"):
        said = own_words(record["texts"][0]) if record["texts"] else record["decided_by"]
        yield record["item"], record["name"], {"criterion": record["criterion"], "score": record["score"], "said": said}
    for reject in _rejects(folder, "score"):
        record = reject["record"]
        yield record["item"], record["name"], {"criterion": record["criterion"], "score": None, "said": reject["reason"]}


def _facts(folder: Path) -> Iterator[tuple[str, str, list[Record]]]:
    """Yield (item, name, facts) of every answer that was split, each fact with its verdict and the checker's text."""
    checks = {record["id"]: _checked(record) for record in _records(folder, "check")}
    missing = {reject["record"]["id"]: reject["reason"] for reject in _rejects(folder, "check")}
    for record in _records(folder, "split"):
        places = (f"{record['id']}/fact-{number}" for number in range(1, len(record["facts"]) + 1))
        facts = [
            checks.get(id_) or _unchecked(fact, missing.get(id_, "no verdict"))
            for id_, fact in zip(places, record["facts"], strict=True)
        ]
        yield record["item"], record["name"], facts


def _checked(record: Record) -> Record:
    made = {"fact": record["statement"], "verdict": record["verdict"], "said": own_words(record["texts"][0])}
    return {**made, "passages": record["passages"]} if "passages" in record else made


def _unchecked(fact: str, reason: str) -> Record:
    return {"fact": fact, "verdict": REJECTED, "said": reason}


def own_words(text: str) -> str:
    """Return the reason that a judge gave in its JSON answer; nothing if it gave a bare verdict; else the text as it is."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    if not isinstance(found, dict):
        return text
    return _joined(value for key, value in found.items() if key not in ("verdict", "score"))


def _joined(values: Iterable[Any]) -> str:
    return "\n".join(value if isinstance(value, str) else orjson.dumps(value).decode() for value in values)


# ---- people ----------------------------------------------------------------------------------------------------------


def same_answers(study: Record, evaluation: Record) -> bool:
    """Say whether people judged the very answers that were evaluated: their files' hashes stand in both manifests."""
    given = {name: digest for name, digest in study.get("inputs", {}).items() if name.startswith("answers/")}
    return bool(given) and given.items() <= evaluation.get("inputs", {}).items()


def add_people(items: dict[str, Record], judgements: Iterable[Record]) -> None:
    """Put people's judgements beside the judges' verdicts, of the same method as these."""
    for record in judgements:
        if record["item"] in items:
            verdicts = items[record["item"]]["verdicts"]
            one, other, outcome = record["one"], record["other"], record["outcome"]
            if any((verdict["one"], verdict["other"]) == (other, one) for verdict in verdicts):
                one, other, outcome = other, one, OPPOSITE[outcome]
            made = {"judge": record["annotator"], "criterion": record["criterion"], "one": one, "other": other}
            verdicts.append({**made, "verdicts": [], "decided_by": "person", "outcome": outcome, "said": []})
