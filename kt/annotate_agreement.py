"""How far people agree, with each other and with the judges of an evaluation of the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from kt.agreement import agreement
from kt.annotate import Study
from kt.errors import InputError
from kt.judge import CRITERIA, OPPOSITE, OUTCOMES, outcome_of
from kt.records import Record, read_jsonl, write_json
from kt.report_results import read_results

FILE = "agreement.json"
SHOWN = 3

Labels = dict[str, dict[str, str]]
"""{who: {item: outcome for the study's first method}}, of one criterion."""


def write_agreement(study: Study, evaluation: str | Path | None = None) -> list[Record]:
    """Write agreement.json into the study's folder, for a report to show; return its rows, see `summary`."""
    rows = summary(study, evaluation)
    write_json(study.out / FILE, rows)
    return rows


def summary(study: Study, evaluation: str | Path | None = None) -> list[Record]:
    """Return for each criterion the wins, ties and losses of the first method, by annotator and by judge, and who agrees.

    "agreement" holds that of all annotators, on the items that all of them judged; then that of each annotator with each
    judge of the evaluation, on what both judged. Raises InputError where the evaluation is of other answers.
    """
    judges = judge_labels(study, Path(evaluation)) if evaluation else {}
    people: dict[str, Labels] = {criterion: {name: {} for name in study.annotators()} for criterion in CRITERIA}
    for record in study.records():
        people[record["criterion"]][record["annotator"]][record["item"]] = record["outcome"]
    one, other = study.about["names"]
    rows = []
    for criterion in CRITERIA:
        asked = judges.get(criterion, {})
        row = {"criterion": criterion, "one": one, "other": other, "annotators": _counts(people[criterion])}
        rows.append({**row, "judges": _counts(asked), "agreement": _agreements(people[criterion], asked)})
    return rows


def _counts(labels: Labels) -> dict[str, dict[str, int]]:
    counts = {name: Counter(own.values()) for name, own in labels.items()}
    return {name: {outcome: counted[outcome] for outcome in OUTCOMES} for name, counted in counts.items()}


def _agreements(people: Labels, judges: Labels) -> list[Record]:
    pairs = [{name: own, judge: said} for judge, said in judges.items() for name, own in people.items()]
    return [agreement(labels) for labels in ([people] if len(people) > 1 else []) + pairs]


# ---- judges ----------------------------------------------------------------------------------------------------------


def judge_labels(study: Study, evaluation: Path) -> dict[str, Labels]:
    """Return by criterion what each judge of an evaluation says of the study's two methods, where a judge was asked.

    InputError if it did not compare the two, or if the answers that it judged are others than the study's.
    """
    results = read_results(evaluation)
    one, other = study.about["names"]
    found: dict[str, Labels] = {}
    compared: dict[str, None] = {}
    for number, judged in enumerate(results.get("judges", [])):
        name = f"{judged['judge']} (judge)"  # an annotator may have a model's name
        for record in read_jsonl(evaluation / (f"judge-{number + 1}" if number else "judge") / "records.jsonl"):
            compared[f"{record['one']} : {record['other']}"] = None
            if {record["one"], record["other"]} == {one, other} and record["decided_by"] == "judge":
                outcome = outcome_of(record["verdicts"], results["settings"]["rule"])
                labels = found.setdefault(record["criterion"], {}).setdefault(name, {})
                labels[record["item"]] = outcome if record["one"] == one else OPPOSITE[outcome]
    if not {f"{one} : {other}", f"{other} : {one}"} & compared.keys():
        said = ", ".join(compared) or "nothing: it has no judge's verdicts"
        raise InputError(f"--judged {evaluation}: compares {said}; the people of {study.out} compared {one} with {other}")
    _check_answers(study, evaluation)
    return found


def _check_answers(study: Study, evaluation: Path) -> None:
    evaluated = {item["id"]: item["answers"] for item in read_jsonl(evaluation / "items/records.jsonl")}
    shared = [task for task in study.tasks if task.id in evaluated]
    if not shared:
        raise InputError(
            f"--judged {evaluation}: has none of the items of {study.out}: give the evaluation of the same test data"
        )
    others = [task.id for task in shared if not _same(evaluated[task.id], {task.name_a: task.text_a, task.name_b: task.text_b})]
    if others:
        some = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        raise InputError(
            f"--judged {evaluation}: judged other answers to {len(others)} of {len(shared)} items ({some}) than the people of"
            f" {study.out}; evaluate the answers that they saw"
        )


def _same(evaluated: Mapping[str, str], shown: Mapping[str, str]) -> bool:
    return all(evaluated[name] == text for name, text in shown.items())
