"""Fact counts (paper 4.3, after FActScore): split a generated answer into facts, check each, count right and wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kt.augment import asker, facts_of, step_config
from kt.evidence import Collection
from kt.intervals import mean, ratio
from kt.judge import value_of
from kt.pipeline import Step
from kt.prompts import Prompt
from kt.records import Record
from kt.request import Completion, Request

VERDICTS = ("correct", "incorrect")
PASSAGES = 5
"""So many passages of a collection are shown to the checker."""

Evidence = Callable[[Record, str], Record]
"""Gives for a split answer and one of its facts {"evidence": text} and, of a collection, {"passages": places}."""


def answers_of(items: Iterable[Record], names: Sequence[str]) -> Iterator[Record]:
    """Yield every item's answer by each name, to be split: {"id", "item", "name", "question", "answer", "gold"}."""
    for item in items:
        for name in names:
            made = {"id": f"{item['id']}/{name}", "item": item["id"], "name": name}
            yield {**made, "question": item["question"], "answer": item["answers"][name], "gold": item["gold"]}


def split(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Answer → its different facts, in order, and how many were repeated; an empty answer has none and asks nothing."""
    ask = asker(prompt, seed)

    def requests(record: Record) -> list[Request]:
        return ask(record) if record["answer"].strip() else []

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        facts = facts_of(completions[0]) if completions else []
        different = list({fact.casefold(): fact for fact in reversed(facts)}.values())[::-1]
        return [{**record, "facts": different, "repeated": len(facts) - len(different)}]

    return Step("split", requests, parse, step_config(prompt, seed, attempts), attempts)


def statements(splits: Iterable[Record], evidence: Evidence) -> Iterator[Record]:
    """Yield every fact to be checked, with its evidence."""
    for record in splits:
        for number, fact in enumerate(record["facts"], 1):
            made = {"id": f"{record['id']}/fact-{number}", "item": record["item"], "name": record["name"]}
            yield {**made, "question": record["question"], "statement": fact, **evidence(record, fact)}


def gold_evidence(record: Record, _: str) -> Record:
    """Check against the gold answer."""
    return {"evidence": record["gold"]}


def no_evidence(_: Record, __: str) -> Record:
    """Check by what the checker knows."""
    return {"evidence": ""}


def evidence_in(collection: Collection) -> Evidence:
    """Return what checks against the passages of a collection that are nearest to the fact."""

    def find(record: Record, fact: str) -> Record:
        passages = collection.search(fact, PASSAGES)
        text = "\n".join(passage.text for passage in passages) or "(no document has a word of the statement)"
        return {"evidence": text, "passages": [passage.place for passage in passages]}

    return find


def check_fact(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Statement with evidence → "correct" or "incorrect", with the checker's own words."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        verdict = value_of(completions[0], "verdict", VERDICTS)
        made = {key: record[key] for key in ("id", "item", "name", "statement")}
        places = {"passages": record["passages"]} if "passages" in record else {}
        return [{**made, **places, "verdict": verdict, "texts": [completions[0].text]}]

    return Step("check", asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def per_answer(splits: Iterable[Record], checks: Iterable[Record]) -> list[Record]:
    """Return one row an answer: its facts, correct, incorrect, unchecked (no verdict to be had), repeated, correct share."""
    verdicts = Counter((check["item"], check["name"], check["verdict"]) for check in checks)
    rows = []
    for record in splits:
        key = (record["item"], record["name"])
        correct, incorrect = verdicts[*key, "correct"], verdicts[*key, "incorrect"]
        checked = correct + incorrect
        made = {"id": record["id"], "item": record["item"], "name": record["name"], "facts": len(record["facts"])}
        counts = {"correct": correct, "incorrect": incorrect, "unchecked": len(record["facts"]) - checked}
        share = round(correct / checked, 6) if checked else None
        rows.append({**made, **counts, "repeated": record["repeated"], "correct_share": share})
    return rows


def totals(rows: Sequence[Record], name: str, rejected: int, seed: int) -> dict[str, Any]:
    """Return a method's counts over all its answers; `rejected` answers could not be split and count nowhere.

    "correct_share" is all correct facts over all checked ones, with an interval from resampling whole answers;
    "correct_share_per_answer" the mean of the answers' own shares, over answers that state something.
    """
    own = [row for row in rows if row["name"] == name]
    correct, incorrect = [row["correct"] for row in own], [row["incorrect"] for row in own]
    checked = [a + b for a, b in zip(correct, incorrect, strict=True)]
    shares = [row["correct_share"] for row in own if row["correct_share"] is not None]
    return {
        "answers": len(own),
        "rejected": rejected,
        "facts": sum(row["facts"] for row in own),
        "correct": sum(correct),
        "incorrect": sum(incorrect),
        "unchecked": sum(row["unchecked"] for row in own),
        "repeated": sum(row["repeated"] for row in own),
        "without_facts": sum(not row["facts"] for row in own),
        "correct_share": ratio(correct, checked, seed, f"facts:{name}:share"),
        "correct_share_per_answer": mean(shares, seed, f"facts:{name}:shares"),
        "correct_per_answer": mean(correct, seed, f"facts:{name}:correct"),
        "incorrect_per_answer": mean(incorrect, seed, f"facts:{name}:incorrect"),
    }
