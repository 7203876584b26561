"""Agreement of people with each other and with an evaluation's judges: by hand, through both commands, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chromium import Watched
from scripted_server import scripted_server
from test_annotate import kt, make_answers, study_of
from test_report import kt as report

from kt.annotate import Study, write_run
from kt.annotate_agreement import judge_labels, summary
from kt.errors import InputError
from kt.judge import CRITERIA
from kt.records import write_json, write_jsonl

pytest.importorskip("nltk")

VERDICTS = {"w": ["B", "A"], "t": ["tie", "tie"], "l": ["A", "B"]}
"""What a judge that compares base with mine says where mine wins, ties, loses."""


def people_say(study: Study, annotator: str, outcomes: str, criterion: str = "factuality") -> None:
    """Judge the items in order: w, t or l for the method `mine`."""
    for task, outcome in zip(study.tasks, outcomes, strict=False):
        mine, base = ("A", "B") if task.name_a == "mine" else ("B", "A")
        study.judge(annotator, task.id, criterion, {"w": mine, "t": "tie", "l": base}[outcome])


def evaluation_of(study: Study, folder: Path, outcomes: str, rule: str = "default") -> Path:
    """Write an evaluation that compared base with mine by factuality."""
    rows = [{"id": t.id, "answers": {t.name_a: t.text_a, t.name_b: t.text_b}} for t in study.tasks]
    write_jsonl(folder / "items/records.jsonl", rows)
    pair = {"criterion": "factuality", "one": "base", "other": "mine", "decided_by": "judge"}
    verdicts = [{**pair, "item": t.id, "verdicts": VERDICTS[o]} for t, o in zip(study.tasks, outcomes, strict=False)]
    write_jsonl(folder / "judge/records.jsonl", verdicts)
    write_json(folder / "results.json", {"settings": {"rule": rule}, "judges": [{"judge": "m", "comparisons": []}]})
    return folder


def test_a_person_and_a_judge_by_hand(tmp_path: Path) -> None:
    """10 items: both say win 4 times and lose 3 times, Ada alone win twice, the judge alone once: observed 0.7, by chance 0.5.

    Of 20 labels 11 are wins and 9 losses: 3 of 10 items unequal, 2 * 11 * 9 / (20 * 19) expected.
    """
    study = study_of(tmp_path, 10)
    people_say(study, "Ada", "wwwwwwllll")
    rows = {row["criterion"]: row for row in summary(study, evaluation_of(study, tmp_path / "e", "wwwwlllllw"))}
    row = rows["factuality"]
    assert row["annotators"] == {"Ada": {"win": 6, "tie": 0, "lose": 4}}
    assert row["judges"] == {"m (judge)": {"win": 5, "tie": 0, "lose": 5}}
    [found] = row["agreement"]
    assert (found["judges"], found["units"], found["same"]) == (["Ada", "m (judge)"], 10, 0.7)
    assert found["kappa"] == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found["alpha"] == pytest.approx(1 - 0.3 / (2 * 11 * 9 / (20 * 19)), abs=1e-6)
    assert rows["logicality"]["agreement"] == []


def test_people_among_themselves_and_each_with_the_judge_on_what_both_judged(tmp_path: Path) -> None:
    study = study_of(tmp_path, 10)
    people_say(study, "Ada", "wwwwwwllll")
    people_say(study, "Bo", "wwtw")
    row = summary(study, evaluation_of(study, tmp_path / "e", "wwwwlllll"))[1]
    assert [(one["judges"], one["units"], one["same"]) for one in row["agreement"]] == [
        (["Ada", "Bo"], 4, 0.75),
        (["Ada", "m (judge)"], 9, round(7 / 9, 6)),
        (["Bo", "m (judge)"], 4, 0.75),
    ]


def test_two_annotators_without_a_judge(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    people_say(study, "Ada", "wwwwww")
    people_say(study, "Bo", "twwwww")
    assert summary(study)[1]["agreement"][0]["same"] == round(5 / 6, 6)
    study.close()
    said = kt("--out", tmp_path / "human", "--agreement")
    assert "Ada and Bo: 6 items judged by all, 83.3% alike; Cohen's kappa" in said.stdout
    rows = json.loads(kt("--out", tmp_path / "human", "--agreement", "--json").stdout)
    assert rows == json.loads((tmp_path / "human/agreement.json").read_text())


def test_what_no_judge_was_asked_is_left_out(tmp_path: Path) -> None:
    study = study_of(tmp_path, 3)
    folder = evaluation_of(study, tmp_path / "e", "wtl")
    rows = [json.loads(line) for line in (folder / "judge/records.jsonl").read_text().splitlines()]
    write_jsonl(folder / "judge/records.jsonl", [rows[0], rows[1], {**rows[2], "decided_by": "empty answer"}])
    assert judge_labels(study, folder) == {"factuality": {"m (judge)": {"q0": "win", "q1": "tie"}}}


def test_an_evaluation_of_something_else_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    folder = evaluation_of(study, tmp_path / "e", "wwwwww")
    with pytest.raises(InputError, match=r"results\.json: cannot be read"):
        summary(study, tmp_path / "nothing")
    items = [json.loads(line) for line in (folder / "items/records.jsonl").read_text().splitlines()]
    items[3]["answers"]["mine"] += " And more."
    write_jsonl(folder / "items/records.jsonl", items)
    with pytest.raises(InputError, match=r"other answers to 1 of 6 items \(q3\)"):
        summary(study, folder)
    write_jsonl(folder / "items/records.jsonl", [{**item, "id": f"x{item['id']}"} for item in items])
    with pytest.raises(InputError, match="none of the items"):
        summary(study, folder)
    rows = (folder / "judge/records.jsonl").read_text().replace('"mine"', '"yours"')
    (folder / "judge/records.jsonl").write_text(rows)
    with pytest.raises(InputError, match=r"compares base : yours; the people of .* compared mine with base"):
        summary(study, folder)
    write_json(folder / "results.json", {"settings": {}})
    study.close()
    said = kt("--out", tmp_path / "human", "--judged", folder)
    assert said.returncode == 1
    assert "it has no judge's verdicts" in said.stderr


def test_one_command_after_kt_evaluate_and_a_table_in_the_page(tmp_path: Path, chromium: object) -> None:
    pytest.importorskip("scipy")
    from test_evaluate import at
    from test_evaluate import kt as evaluate

    options = make_answers(tmp_path, 8)
    common = [*options, "--metrics", "judge", "--cache", tmp_path / "c", "--out", tmp_path / "y/evaluation"]
    with scripted_server(tmp_path / "server") as server:
        done = evaluate(*common, *at(server))
    assert done.returncode == 0, done.stderr
    study = study_of(tmp_path, 8)
    for criterion in CRITERIA:
        people_say(study, "Ada", "wwwwllll", criterion)
    write_run(study)
    study.close()
    (tmp_path / "human").rename(tmp_path / "y/human")
    said = kt("--out", tmp_path / "y/human", "--judged", tmp_path / "y/evaluation")
    assert said.returncode == 0, said.stderr
    # The judge prefers the longer answer: "Second ..." of base to "First ..." of mine; q0 was empty, and nobody was asked.
    assert "m (judge): 0 wins, 0 ties, 7 losses" in said.stdout
    assert "Ada and m (judge): 7 items judged by all, 57.1% alike" in said.stdout
    assert report(tmp_path / "y", "--out", tmp_path / "r.html").returncode == 0
    watched = Watched(chromium)
    watched.page.goto((tmp_path / "r.html").as_uri())
    rows = watched.page.locator("table[data-name='human-agreement-human'] tbody tr")
    assert rows.count() == 3
    assert rows.nth(0).locator("td").nth(1).text_content() == "Ada, m (judge)"
    assert rows.nth(0).locator("td").nth(3).text_content() == "0.571429"
    assert watched.complaints == []
