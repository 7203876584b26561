"""A model as judge (paper 4.3): two answers compared by one criterion in both orders, or one answer scored from 1 to 10."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import orjson

from kt.augment import asker, step_config, text_of
from kt.intervals import mean
from kt.pipeline import BadAnswer, Step
from kt.prompts import Prompt
from kt.records import Record
from kt.request import Completion, Request

Rule = Literal["default", "strict"]
Outcome = Literal["win", "tie", "lose"]

CRITERIA = ("completeness", "factuality", "logicality")
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "lose")
LETTERS = ("A", "B", "tie")
OPPOSITE: dict[str, Outcome] = {"win": "lose", "tie": "tie", "lose": "win"}
"""What an outcome is for the other method."""
SCORES = range(1, 11)


# ---- two answers -----------------------------------------------------------------------------------------------------


def pairs(items: Iterable[Record], comparisons: Sequence[tuple[str, str]], criteria: Sequence[str]) -> Iterator[Record]:
    """Yield what is to be compared: every item's answers by `one` and `other`, by each criterion.

    Items are {"id", "question", "answers": {name: text}}.
    """
    for item in items:
        for one, other in comparisons:
            for criterion in criteria:
                yield {
                    "id": f"{item['id']}/{criterion}/{one}/{other}",
                    "item": item["id"],
                    "criterion": criterion,
                    "question": item["question"],
                    "one": one,
                    "other": other,
                    "answers": [item["answers"][one], item["answers"][other]],
                }


def judge_pair(prompt: Prompt, seed: int, attempts: int, name: str = "judge") -> Step:
    """Pair → its two verdicts, "A", "B" or "tie": first with `one` as answer A, then with `other` as answer A.

    An empty answer loses to any other and equal answers tie, without asking; "decided_by" says so.
    """
    ask = asker(prompt, seed)

    def requests(record: Record) -> list[Request]:
        if _plain_case(record["answers"]):
            return []
        one, other = record["answers"]
        return [*ask({**record, "answer_a": one, "answer_b": other}), *ask({**record, "answer_a": other, "answer_b": one})]

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        made = {key: record[key] for key in ("id", "item", "criterion", "one", "other")}
        if completions:
            verdicts, decided_by = [value_of(c, "verdict", LETTERS) for c in completions], "judge"
        else:
            verdicts, decided_by = _plain_case(record["answers"]) or ([], "")
        return [{**made, "verdicts": verdicts, "decided_by": decided_by, "texts": [c.text for c in completions]}]

    return Step(name, requests, parse, step_config(prompt, seed, attempts), attempts)


def _plain_case(answers: Sequence[str]) -> tuple[list[str], str] | None:
    """Return the verdicts that need no judge, and why; None if a judge must be asked."""
    one, other = (answer.strip() for answer in answers)
    if one == other:
        return ["tie", "tie"], "equal answers"
    if not one or not other:
        return (["A", "B"] if one else ["B", "A"]), "empty answer"
    return None


def value_of(completion: Completion, key: str, allowed: Iterable[Any]) -> Any:
    """Return the value of a JSON answer's key; BadAnswer if it is none of those allowed."""
    try:
        found = orjson.loads(text_of(completion))
    except orjson.JSONDecodeError as error:
        raise BadAnswer("the answer is not JSON") from error
    value = found.get(key) if isinstance(found, dict) else None
    if isinstance(value, bool) or value not in allowed:
        raise BadAnswer(f"the answer has no {key} among {', '.join(map(str, allowed))}")
    return value


def outcome_of(verdicts: Sequence[str], rule: Rule) -> Outcome:
    """Return what two verdicts make of `one` (method.md: Evaluation).

    Rule default: win+win and win+tie are a win, likewise lose; win+lose and tie+tie are ties. Rule strict: both must agree.
    """
    first, second = verdicts
    seen = [{"A": 1, "B": -1, "tie": 0}[first], {"A": -1, "B": 1, "tie": 0}[second]]
    if rule == "strict" and seen[0] != seen[1]:
        return "tie"
    total = sum(seen)
    return "win" if total > 0 else "lose" if total < 0 else "tie"


def tally(verdicts: Iterable[Record], rejects: Iterable[Record], rule: Rule, seed: int) -> list[dict[str, Any]]:
    """Count wins, ties and losses of every comparison and criterion, in the order of the verdicts, with intervals.

    "position_bias" is the share of judged pairs in which the judge named the same letter in both orders, so that only
    the place decided; pairs decided without the judge are left out of it.
    """
    groups: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
    for record in verdicts:
        groups.setdefault(_group(record), []).append((record["verdicts"], record["decided_by"]))
    rejected = Counter(_group(reject["record"]) for reject in rejects)
    return [_row(group, groups.get(group, []), rejected[group], rule, seed) for group in dict.fromkeys([*groups, *rejected])]


def _group(record: Record) -> tuple[str, ...]:
    return record["one"], record["other"], record["criterion"]


def _row(group: tuple[str, ...], found: list[tuple[list[str], str]], rejected: int, rule: Rule, seed: int) -> dict[str, Any]:
    one, other, criterion = group
    outcomes = [outcome_of(verdicts, rule) for verdicts, _ in found]
    judged = [verdicts for verdicts, decided_by in found if decided_by == "judge"]
    first, second = judged.count(["A", "A"]), judged.count(["B", "B"])
    row = {"one": one, "other": other, "criterion": criterion, "rule": rule, "pairs": len(found), "rejected": rejected}
    for name in OUTCOMES:
        share = mean([float(outcome == name) for outcome in outcomes], seed, f"{'/'.join(group)}:{name}")
        row[name] = {"count": outcomes.count(name), "share": share["mean"], "interval": share["interval"]}
    return {
        **row,
        "judged": len(judged),
        "always_first": first,
        "always_second": second,
        "position_bias": round((first + second) / len(judged), 6) if judged else None,
        "without_judge": dict(sorted(Counter(why for _, why in found if why != "judge").items())),
    }


# ---- one answer ------------------------------------------------------------------------------------------------------


def singles(items: Iterable[Record], names: Sequence[str], criteria: Sequence[str]) -> Iterator[Record]:
    """Yield what is to be scored: every item's answer by each name, by each criterion."""
    for item in items:
        for name in names:
            for criterion in criteria:
                made = {"id": f"{item['id']}/{criterion}/{name}", "item": item["id"], "name": name, "criterion": criterion}
                yield {**made, "question": item["question"], "answer": item["answers"][name]}


def judge_single(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Answer → {"score": 1..10} by one criterion; an empty answer scores 1 without asking."""
    ask = asker(prompt, seed)

    def requests(record: Record) -> list[Request]:
        return ask(record) if record["answer"].strip() else []

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        made = {key: record[key] for key in ("id", "item", "name", "criterion")}
        score = value_of(completions[0], "score", SCORES) if completions else 1
        decided_by = "judge" if completions else "empty answer"
        return [{**made, "score": score, "decided_by": decided_by, "texts": [c.text for c in completions]}]

    return Step("score", requests, parse, step_config(prompt, seed, attempts), attempts)


def mean_scores(scores: Iterable[Record], rejects: Iterable[Record], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by name and criterion the mean score with its interval, the count, and how many answers could not be scored."""
    groups: dict[tuple[str, str], list[float]] = {}
    for record in scores:
        groups.setdefault((record["name"], record["criterion"]), []).append(record["score"])
    rejected = Counter((r["record"]["name"], r["record"]["criterion"]) for r in rejects)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, criterion in dict.fromkeys([*groups, *rejected]):
        values = groups.get((name, criterion), [])
        figures = mean(values, seed, f"score:{name}:{criterion}")
        found.setdefault(name, {})[criterion] = {
            **figures,
            "answers": len(values),
            "rejected": rejected[name, criterion],
        }
    return found
