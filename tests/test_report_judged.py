"""A whole evaluation in the page: every number that of results.json, and every verdict beside the answers it is about."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chromium import Watched
from conftest import needs
from scripted_server import scripted_server
from test_annotate import CONTRAST, NASTY
from test_evaluate import PARTS, settings, study
from test_evaluate import at as judged_by
from test_evaluate import kt as evaluate
from test_metrics import make_encoder

from kt.annotate import start_study, write_run
from kt.evaluate import evaluate as evaluate_here
from kt.judge import CRITERIA
from kt.records import read_jsonl, write_jsonl
from kt.report import as_markdown, charts_library, write_page
from kt.report_data import Report, read_run
from kt.report_judged import own_words, read_judged
from kt.report_results import Table

pytest.importorskip("scipy")
pytest.importorskip("nltk")

COUNT = 8
WITH_BERTSCORE = needs("torch", "transformers", "bert_score")
"""Where its libraries are, BERTScore by a tiny encoder is one of the metrics of the evaluation that the page shows."""


def kt(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "report", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def three_methods(folder: Path) -> list[object]:
    """The study of test_evaluate, one answer made of markup; a third method answers as the first does, or not at all."""
    options = study(folder, COUNT)
    rows = list(read_jsonl(folder / "kt/records.jsonl"))
    rows[1]["answer"] = f"{NASTY} Town 1 is old. </script><script>alert(2)</script>"
    write_jsonl(folder / "kt/records.jsonl", rows)
    write_jsonl(
        folder / "copy/records.jsonl", [{**row, "answer": row["answer"] if n % 2 else " "} for n, row in enumerate(rows)]
    )
    return [*options, "--answers", f"copy={folder / 'copy'}"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with all parts, by a judge that reads and one that looks at places alone; a person judged too."""
    folder = tmp_path_factory.mktemp("evaluated")
    parts: list[object] = [*PARTS]
    if not WITH_BERTSCORE.args[0]:
        encoder = make_encoder(folder / "encoder")
        parts = ["--metrics", f"{PARTS[1]},bertscore", "--encoder", encoder, "--encoder-layer", 2]
    common = [*three_methods(folder), *parts, "--cache", folder / "c", "--out", folder / "y/evaluation"]
    with scripted_server(folder / "1") as one, scripted_server(folder / "2", "--judge", "first") as two:
        second = ["--second-judge", "n", "--second-base-url", two.url]
        evaluate_here(settings("--prompts", "compact", *common, *judged_by(one), *second))  # torch is imported once
    answers = {name: folder / name for name in ("sft", "kt")}
    people = start_study(folder / "y/human", answers, [str(folder / "test.json")], 42, None)
    for task in people.tasks:
        people.judge("Ada", task.id, "factuality", "A" if task.name_a == "kt" else "B")
    write_run(people)
    people.close()
    return folder / "y"


@pytest.fixture(scope="module")
def page_file(evaluated: Path) -> Path:
    path = evaluated.parent / "report.html"
    assert kt(evaluated, "--out", path).returncode == 0
    return path


def results_of(run: Path) -> Any:
    return json.loads((run / "evaluation/results.json").read_text())


def numbers(value: Any) -> list[float]:
    """Every number below a JSON value."""
    if isinstance(value, dict | list):
        return [number for inner in (value.values() if isinstance(value, dict) else value) for number in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_every_verdict_stands_beside_its_answers_with_the_judges_own_words(evaluated: Path) -> None:
    results = results_of(evaluated)
    items = read_judged(evaluated / "evaluation", results)
    assert [item["id"] for item in items] == [f"q{n}" for n in range(COUNT)]
    for judged in results["judges"]:
        for row in judged["comparisons"]:
            key = (judged["judge"], row["one"], row["other"], row["criterion"])
            own = [
                v for i in items for v in i["verdicts"] if tuple(v[k] for k in ("judge", "one", "other", "criterion")) == key
            ]
            outcomes = Counter(verdict["outcome"] for verdict in own)
            assert {name: outcomes[name] for name in ("win", "tie", "lose")} == {
                name: row[name]["count"] for name in ("win", "tie", "lose")
            }
    for name, method in results["methods"].items():
        facts = Counter(fact["verdict"] for item in items for fact in item["facts"][name])
        assert (facts["correct"], facts["incorrect"]) == (method["facts"]["correct"], method["facts"]["incorrect"])
        scores = [s["score"] for item in items for s in item["scores"][name] if s["criterion"] == "logicality"]
        assert sum(scores) / COUNT == pytest.approx(method["scores"]["logicality"]["mean"], abs=1e-6)
        meteor = [item["metrics"][name]["meteor-no-wordnet"] for item in items]
        assert sum(meteor) / COUNT == pytest.approx(method["metrics"]["meteor-no-wordnet"]["mean"], abs=1e-6)


def test_peoples_judgements_stand_with_the_judges_and_only_on_the_same_answers(evaluated: Path, tmp_path: Path) -> None:
    """People compared sft with kt, the judges kt with sft: what Ada said is turned around."""
    people = [v for item in read_run(evaluated).judged for v in item["verdicts"] if v["decided_by"] == "person"]
    assert {(v["judge"], v["one"], v["other"], v["outcome"]) for v in people} == {("Ada", "kt", "sft", "win")}
    assert len(people) == COUNT
    for name in ("evaluation", "human"):
        subprocess.run(["cp", "-r", evaluated / name, tmp_path / name], check=True)
    manifest = json.loads((tmp_path / "human/manifest.json").read_text())
    manifest["inputs"]["answers/kt"] = "0" * 64
    (tmp_path / "human/manifest.json").write_text(json.dumps(manifest))
    assert not [v for item in read_run(tmp_path).judged for v in item["verdicts"] if v["decided_by"] == "person"]


def test_own_words_are_the_reason_or_the_text_as_it_is() -> None:
    assert own_words('{"reason": "B errs.", "verdict": "A"}') == "B errs."
    assert own_words('{"verdict": "A"}') == ""
    assert own_words("A, clearly") == "A, clearly"
    assert own_words('["A"]') == '["A"]'


def test_answers_without_a_verdict_are_shown_as_such(tmp_path: Path, chromium: Any) -> None:
    common = [*study(tmp_path, 3), "--metrics", "judge,score,facts", "--cache", tmp_path / "c.sqlite"]
    with scripted_server(tmp_path, "--mode", "garbage") as server:
        done = evaluate(*common, *judged_by(server), "--out", tmp_path / "y/evaluation")
        assert done.returncode == 0, done.stderr
    items = {item["id"]: item for item in read_run(tmp_path / "y").judged}
    assert [v["outcome"] for v in items["q0"]["verdicts"]] == ["win"] * 3  # an empty answer, which nobody was asked about
    assert [v["outcome"] for v in items["q1"]["verdicts"]] == ["rejected"] * 3
    assert "invalid answer" in items["q1"]["verdicts"][0]["said"][0]
    assert [score["score"] for score in items["q1"]["scores"]["kt"]] == [None] * 3
    assert [name for name, _ in items["q1"]["why"]] == ["kt", "sft"]
    assert kt(tmp_path / "y", "--out", tmp_path / "r.html").returncode == 0
    page = opened(chromium, tmp_path / "r.html").page
    page.select_option("#judged-outcome", "no verdict")
    assert page.text_content("#judged-found") == "2 of 3 items"
    page.locator("#judged-list button").first.click()
    assert page.locator("#judged-item .why").count() == 2
    assert page.locator("#judged-item .verdict .rejected").all_text_contents() == ["no verdict"] * 3
    assert page.locator("#judged-item .scores b").all_text_contents() == ["no score"] * 6


# ---- in a real browser -----------------------------------------------------------------------------------------------


def opened(browser: Any, path: Path, **options: Any) -> Watched:
    watched = Watched(browser, **options)
    watched.page.goto(path.as_uri())
    watched.page.wait_for_selector("#judged-item h3")
    return watched


def test_every_number_of_the_page_is_that_of_results_json(evaluated: Path, page_file: Path, chromium: Any) -> None:
    """All of both: no number of the evaluation is missing from the page's tables, and none is in them that it does not hold."""
    results = results_of(evaluated)
    watched = opened(chromium, page_file)

    def cells(name: str) -> list[float]:
        texts = watched.page.locator(f"table[data-name='{name}-evaluation'] td.number").all_text_contents()
        return sorted(float(found.replace(",", "")) for text in texts for found in re.findall(r"-?[\d,]*\d(?:\.\d+)?", text))

    methods = sorted(numbers(results["methods"]))
    assert len(methods) > 90
    assert sorted([*cells("methods"), *cells("counts")]) == methods
    rows = [row for one in results["judges"] for row in one["comparisons"]]
    assert len(rows) == 2 * 2 * len(CRITERIA)
    reasons = {why for row in rows for why in row["without_judge"]}
    assert reasons == {"empty answer", "equal answers"}
    absent = [0 for row in rows for why in reasons if why not in row["without_judge"]]
    judged = [row[name] for row in rows for name in ("pairs", "win", "tie", "lose")]
    assert cells("judges") == sorted(numbers(judged))
    rest = [{key: value for key, value in row.items() if key not in ("pairs", "win", "tie", "lose")} for row in rows]
    assert cells("asked") == sorted([*numbers(rest), *absent])
    assert cells("agreement") == sorted(numbers(results["agreement"]))
    assert cells("items") == sorted(numbers(results["items"]))
    assert watched.complaints == []
    assert watched.outside(page_file.as_uri()) == []


@WITH_BERTSCORE
def test_bertscore_stands_in_the_page_as_in_results_json(evaluated: Path, page_file: Path, chromium: Any) -> None:
    """By name: each method's precision, recall and F1, with their intervals, in the row and the column where they belong."""
    results = results_of(evaluated)
    table = opened(chromium, page_file).page.locator("table[data-name='methods-evaluation']")
    assert table.locator("thead th").all_text_contents()[1:] == list(results["methods"])
    for figure in ("bertscore-precision", "bertscore-recall", "bertscore-f1"):
        row = table.locator("tbody tr").filter(has=table.page.get_by_role("cell", name=figure, exact=True))
        shown = [
            [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)] for text in row.locator("td.number").all_text_contents()
        ]
        assert shown == [numbers(found["metrics"][figure]) for found in results["methods"].values()]
        assert all(len(set(one)) == 3 for one in shown)
    scores = [row["bertscore-f1"] for row in read_jsonl(evaluated / "evaluation/metrics/records.jsonl") if row["name"] == "kt"]
    assert sum(scores) / COUNT == pytest.approx(results["methods"]["kt"]["metrics"]["bertscore-f1"]["mean"], abs=1e-6)


def test_charts_show_the_numbers_of_the_results_with_their_intervals(evaluated: Path, page_file: Path, chromium: Any) -> None:
    if not charts_library():
        pytest.skip("not installed: vl-convert-python")
    results = results_of(evaluated)
    wanted = 7 if WITH_BERTSCORE.args[0] else 8
    page = opened(chromium, page_file).page
    page.locator("#plots svg").nth(wanted - 1).wait_for()
    charts = {chart["title"]: chart["values"] for chart in read_run(evaluated).charts}
    shown = page.locator("#plots > div").evaluate_all("all => all.map(one => one.textContent)")
    assert len(shown) == len(charts) == wanted
    assert all(any(title in text for text in shown) for title in charts)
    for method, found in results["methods"].items():
        [dot] = [v for v in charts["METEOR (evaluation)"] if v["method"] == method]
        assert [dot["value"], dot["low"], dot["high"]] == numbers(found["metrics"]["meteor-no-wordnet"])
        [dot, _] = [v for v in charts["Share of facts that are correct (evaluation)"] if v["method"] == method]
        assert [dot["value"], dot["low"], dot["high"]] == numbers(found["facts"]["correct_share"])
        for dot in charts.get("BERTScore (evaluation)", []):
            if dot["method"] == method:
                assert [dot["value"], dot["low"], dot["high"]] == numbers(found["metrics"][dot["figure"]])
    for judged in results["judges"]:
        bars = charts[f"Judged by {judged['judge']} (evaluation)"]
        assert [bar["share"] for bar in bars] == [
            row[o]["share"] for row in judged["comparisons"] for o in ("win", "tie", "lose")
        ]
        bounds = [[bar["low"], bar["high"]] for bar in bars if bar["outcome"] == "win"]
        assert bounds == [row["win"]["interval"] for row in judged["comparisons"]]
    assert page.locator("#plots svg .mark-rule path, #plots svg .mark-rule line").count() >= 3 * len(results["methods"])


def test_verdicts_are_read_side_by_side_and_found_by_filters(evaluated: Path, page_file: Path, chromium: Any) -> None:
    watched = opened(chromium, page_file)
    page = watched.page
    assert page.text_content("#judged-found") == f"{COUNT} of {COUNT} items"
    for judged in results_of(evaluated)["judges"]:
        for row in judged["comparisons"]:
            for outcome in ("win", "tie", "lose"):
                page.select_option("#judged-judge", judged["judge"])
                page.select_option("#judged-criterion", row["criterion"])
                page.select_option("#judged-comparison", f"{row['one']} : {row['other']}")
                page.select_option("#judged-outcome", outcome)
                assert page.text_content("#judged-found") == f"{row[outcome]['count']} of {COUNT} items"
    page.select_option("#judged-outcome", "only the place decided")
    page.select_option("#judged-comparison", "kt : sft")
    assert page.text_content("#judged-found") == f"{COUNT - 1} of {COUNT} items"  # judge n: all but the empty answer
    page.fill("#judged-search", "town 3 wool")
    page.wait_for_selector("#judged-found:text('1 of')")
    marks = page.locator("#judged-list .outcome")
    assert marks.all_text_contents() == ["L="]  # the others do not pass the filters
    assert page.get_by_role("img", name="logicality: tie (kt : sft, n)").count() == 1
    page.locator("#judged-list button").click()
    assert page.text_content("#judged-item .id") == "q3"
    assert page.locator("#judged-item .pair").first.locator("h5").all_text_contents() == ["kt", "sft"]
    answers = page.locator("#judged-item .pair").first.locator(".text").all_text_contents()
    assert answers == ["Town 3 is old. Town 3 makes wool.", "Town 3 is <b>new</b>."]
    first = page.locator("#judged-item .verdict").first
    assert first.locator(".outcome").text_content() == "kt wins"
    assert first.locator(".orders b").all_text_contents() == ["A, kt, is better", "B, kt, is better"]
    assert page.locator("#judged-item .verdict", has_text="(a person)").count() == 1
    assert page.locator("#judged-item .checks .correct").count() == 2
    assert page.locator("#judged-item .checks .incorrect").count() == 1
    page.get_by_role("button", name="kt : copy").click()
    assert page.locator("#judged-item .pair").first.locator("h5").all_text_contents() == ["kt", "copy"]
    assert page.locator("#judged-item .verdict", has_text="not asked: equal answers").count() == 2 * len(CRITERIA)
    page.reload()
    page.wait_for_selector("#judged-item h3")
    assert page.text_content("#judged-item .id") == "q3"
    assert watched.complaints == []


def test_markup_in_names_and_reasons_is_shown_as_text(tmp_path: Path, chromium: Any) -> None:
    """A method and a judge named by markup, a reason full of it: in lists, tables, charts."""
    verdict = {"judge": NASTY, "criterion": "factuality", "one": NASTY, "other": "b", "verdicts": ["A", "B"], "outcome": "win"}
    item = {
        "id": NASTY,
        "question": NASTY,
        "gold": NASTY,
        "answers": {NASTY: NASTY, "b": "x"},
        "place": "e",
        "why": [[NASTY, NASTY]],
    }
    item |= {"metrics": {}, "scores": {NASTY: [{"criterion": NASTY, "score": 3, "said": NASTY}]}}
    item |= {"facts": {NASTY: [{"fact": NASTY, "verdict": "incorrect", "said": NASTY, "passages": [NASTY]}]}}
    item |= {"verdicts": [{**verdict, "decided_by": "judge", "said": [NASTY, NASTY]}]}
    charts = [{"kind": "curve", "title": NASTY, "values": [{"step": 1, "figure": NASTY, "value": 1}]}]
    tables = [Table(NASTY, NASTY, [NASTY], [[NASTY]], NASTY)]
    write_page(Report(NASTY, [], [item], tables, charts, [{"place": NASTY, "manifest": {NASTY: NASTY}}]), tmp_path / "r.html")
    watched = opened(chromium, tmp_path / "r.html")
    if charts_library():
        watched.page.wait_for_selector("#plots svg")
    assert watched.page.locator("body img, #judged script, table script").count() == 0
    assert watched.page.title() == f"{NASTY} · kt report"
    assert watched.complaints == []
    assert watched.outside((tmp_path / "r.html").as_uri()) == []


def test_markup_in_answers_is_shown_as_text(page_file: Path, chromium: Any) -> None:
    watched = opened(chromium, page_file)
    page = watched.page
    page.fill("#judged-search", "alert")
    page.wait_for_selector("#judged-found:text('1 of')")
    page.locator("#judged-list button").click()
    assert NASTY in page.locator("#judged-item .text").nth(1).text_content()
    assert page.locator("#judged img, #judged script").count() == 0
    assert watched.complaints == []
    assert watched.outside(page_file.as_uri()) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_beside_each_other(page_file: Path, chromium: Any, scheme: str) -> None:
    page = opened(chromium, page_file, color_scheme=scheme).page
    assert page.evaluate(CONTRAST.replace("main:not([hidden]) *, header *", "section *:not(svg *)")) == []


def test_nothing_is_cut_off_in_a_narrow_window_or_on_paper(page_file: Path, chromium: Any) -> None:
    page = opened(chromium, page_file, viewport={"width": 400, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.set_viewport_size({"width": 718, "height": 1000})  # the print area of A4 at 96 dots an inch, margins of 10 mm
    page.emulate_media(media="print")
    wide = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent.slice(0, 40))"
    assert page.locator(".table, .open, .plots > div").evaluate_all(wide) == []


def test_four_thousand_judged_items_are_a_page_at_a_time(evaluated: Path, tmp_path: Path, chromium: Any) -> None:
    found = read_run(evaluated)
    found.judged = [{**found.judged[n % COUNT], "id": f"item-{n}"} for n in range(4000)]
    write_page(found, tmp_path / "r.html")
    page = opened(chromium, tmp_path / "r.html").page
    assert page.locator("#judged-list button").count() == 50
    page.click("#judged-forth")
    page.wait_for_selector("#judged-page:text('page 2 of 80')")
    page.fill("#judged-search", "item-3999")
    page.wait_for_selector("#judged-found:text('1 of 4,000 items')")
    page.fill("#judged-search", "")
    page.select_option("#judged-outcome", "lose")
    page.wait_for_selector("#judged-page:text('page 1 of')")
    assert page.locator("#judged-list button").count() <= 50


# ---- tables as text --------------------------------------------------------------------------------------------------


def test_intervals_stand_in_every_format(evaluated: Path) -> None:
    found = results_of(evaluated)["methods"]["kt"]["metrics"]["meteor-no-wordnet"]
    low, high = found["interval"]
    assert f"{found['mean']} [{low}, {high}]" in as_markdown(read_run(evaluated).tables)
    rows = list(csv.reader(io.StringIO(kt(evaluated, "--format", "csv").stdout)))
    [meteor] = [row for row in rows if row[:2] == ["methods-evaluation", "meteor-no-wordnet"]]
    assert [float(cell) for cell in meteor[2:5]] == [found["mean"], low, high]
    table = next(t for t in json.loads(kt(evaluated, "--format", "json").stdout) if t["name"] == "methods-evaluation")
    [row] = [row for row in table["rows"] if row["figure"] == "meteor-no-wordnet"]
    assert [row["kt"], row["kt low"], row["kt high"]] == [found["mean"], low, high]


def test_steps_and_rejects_of_an_evaluation_are_counted(evaluated: Path) -> None:
    tables = {table.name: table for table in read_run(evaluated).tables}
    steps = json.loads((evaluated / "evaluation/manifest.json").read_text())["steps"]
    assert tables["steps-evaluation"].rows == [[name, *counts.values()] for name, counts in steps.items()]
    assert [row[0] for row in tables["rejects-evaluation"].rows] == ["items"]


def test_a_run_without_an_evaluation_has_no_such_part(tmp_path: Path, chromium: Any) -> None:
    write_page(Report("nothing", [], [], [], [], []), tmp_path / "r.html")
    watched = Watched(chromium)
    watched.page.goto((tmp_path / "r.html").as_uri())
    assert watched.page.locator("#judged").is_hidden()
    links = watched.page.locator("nav a").all()
    assert [link.text_content() for link in links if link.is_visible()] == ["Provenance"]
    assert watched.complaints == []
