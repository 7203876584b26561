"""The report: what it says is what the run's files say, and the page in a real Chromium that reaches nothing."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chromium import Watched
from scripted_server import scripted_server
from test_annotate import CONTRAST, NASTY
from test_build import at
from test_build import kt as build

from kt.compare import ASPECTS
from kt.records import read_jsonl, write_jsonl
from kt.report import as_json, charts_library
from kt.report_data import read_run, worse_text

ITEMS = 9


def questions(folder: Path) -> Path:
    rows = [{"question": f"What of {i}?", "answer": f"One of {i}. Two of {i} it is. And three words."} for i in range(ITEMS)]
    rows[1] |= {"answer": "One fact alone."}
    rows[2] |= {"question": f"Is {NASTY} text?", "answer": f"{NASTY} Two. </script><script>alert(2)</script> Three."}
    (folder / "qa.json").write_text(json.dumps(rows))
    return folder / "qa.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """An experiment's folder: data built with real perplexities, a training's curves."""
    folder = tmp_path_factory.mktemp("report")
    with scripted_server(folder) as server:
        common = ["--data", questions(folder), "--cache", folder / "c", "--difficulty", "ppl", "--scorer", tiny_llama]
        done = build(*at(server), *common, "--out", folder / "x/data")
        assert done.returncode == 0, done.stderr
    write_jsonl(folder / "x/ka/curves.jsonl", [{"step": n, "loss": 2 / n, "eval_loss": 3 / n} for n in range(1, 9)])
    pairs = {f"accuracy/{aspect}": 0.5 for aspect in ASPECTS}
    write_jsonl(folder / "x/kc/curves.jsonl", [{"step": n, "loss": 1 / n, "margin": n / 2, **pairs} for n in range(1, 4)])
    for name, result in (("ka", {}), ("kc", {"result": {"steps": 3, "loss": 0.333}, "counts": {"rows": 25}})):
        (folder / f"x/{name}/manifest.json").write_text(json.dumps({"kind": "train", "name": name, **result}))
    return folder / "x"


def kt(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "report", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_items_are_those_of_the_training_sets(run: Path) -> None:
    items = {item["id"]: item for item in read_run(run).items}
    assert len(items) == ITEMS
    pairs = list(read_jsonl(run / "data/sets/kc.jsonl"))
    assert len(pairs) == 3 * ITEMS - 2
    for pair in pairs:
        item = items[pair["item"]]
        assert item["question"] == pair["prompt"]
        assert item["better"] == pair["chosen"]
        assert worse_text(item, pair["aspect"]) == pair["rejected"]
    for facts in read_jsonl(run / "data/sets/facts.jsonl"):
        item = items[facts["id"]]
        assert (item["facts"], item["kept"]) == (facts["facts"], facts["kept"])
        assert item["ppl"] == pytest.approx(facts["perplexities"], abs=1e-3)
    for fine in read_jsonl(run / "data/sets/ka.jsonl"):
        if fine["id"].endswith("/fine"):
            assert items[fine["id"].removesuffix("/fine")]["fine"] == [fine["prompt"], fine["completion"]]
    assert [item["why"] for item in items.values() if item["why"]] == [
        [[step, "one fact only: nothing to delete or put in another order"] for step in ("delete", "shuffle")]
    ]


def test_rephrased_worse_answers_are_shown_as_trained_on(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = ["--data", questions(tmp_path), "--cache", tmp_path / "c", "--out", tmp_path / "a"]
        assert build(*at(server), *common, "--rejected", "rephrase").returncode == 0
    items = {item["id"]: item for item in read_run(tmp_path / "a").items}
    for pair in read_jsonl(tmp_path / "a/sets/kc.jsonl"):
        assert worse_text(items[pair["item"]], pair["aspect"]) == pair["rejected"]


def test_tables_are_the_same_in_every_format(run: Path, tmp_path: Path) -> None:
    tables = read_run(run).tables
    assert {"steps", "sets", "rejects", "lengths", "cost"} <= {table.name for table in tables}
    assert json.loads(kt(run, "--format", "json").stdout) == as_json(tables)
    assert kt(run, "--format", "csv", "--out", tmp_path / "t.csv").returncode == 0
    rows = list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text())))
    expected = [[table.name, *line] for table in tables for line in (table.columns, *table.rows)]
    assert rows == [["" if cell is None else str(cell) for cell in line] for line in expected]
    assert "| delete | 9 | 8 | 1 |" in kt(run, "--format", "md").stdout


def test_trainings_are_a_row_each_with_the_last_figures_of_their_pairs(run: Path) -> None:
    [table] = [table for table in as_json(read_run(run).tables) if table["name"] == "trainings"]
    ka, kc = table["rows"]
    assert (ka["training"], ka["steps"], ka["logicality"]) == ("ka", None, None)
    assert (kc["rows"], kc["steps"], kc["loss"], kc["margin"], kc["logicality"]) == (25, 3, 0.333, 1.5, 0.5)


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert kt(run, "--out", tmp_path / name).returncode == 0
    page = (tmp_path / "a").read_bytes()
    assert page == (tmp_path / "b").read_bytes()
    assert b"<script>alert" not in page
    assert page.count(b"</script>") == (3 if charts_library() else 2)


def test_what_is_no_run_is_a_sentence(tmp_path: Path, run: Path) -> None:
    assert "not a run" in kt(tmp_path).stderr
    (tmp_path / "manifest.json").write_text("{")
    assert "cannot be read" in kt(tmp_path).stderr
    assert kt(run, "--out", "/proc/nowhere/x.html").returncode == 1


# ---- in a real browser -----------------------------------------------------------------------------------------------


def opened(browser: Any, page: Path, **options: Any) -> Watched:
    watched = Watched(browser, **options)
    watched.page.goto(page.as_uri())
    watched.page.wait_for_selector("#item h3")
    return watched


def test_the_page_shows_the_run_and_asks_for_nothing(run: Path, tmp_path: Path, chromium: Any) -> None:
    assert kt(run, "--out", tmp_path / "r.html").returncode == 0
    watched = opened(chromium, tmp_path / "r.html")
    page = watched.page
    for table in as_json(read_run(run).tables):
        cells = page.locator(f"table[data-name='{table['name']}'] tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert len(cells) == len(table["rows"])
        for shown, row in zip(cells, table["rows"], strict=True):
            for text, value in zip(shown, row.values(), strict=True):
                said = float(text.replace(",", "")) if isinstance(value, int | float) else text
                assert said == ("" if value is None else value)
    page.fill("#search", "alert")
    page.wait_for_selector(f"#found:text('1 of {ITEMS} items')")
    page.locator("#list button").click()
    assert NASTY in page.text_content("#item h3")
    assert page.locator("#item img, #item script").count() == 0
    page.fill("#search", "")
    page.select_option("#filter", "one fact only")
    page.wait_for_selector(f"#found:text('1 of {ITEMS} items')")
    page.locator("#list button").click()
    assert page.locator("#item .why").count() == 2
    if charts_library():
        page.wait_for_selector("#plots svg")
        page.locator("#plots svg").nth(5).wait_for()
        titles = page.locator("#plots > div").evaluate_all("all => all.map(one => one.textContent)")
        for title, shown in {"margin of chosen over rejected": "margin", "won by the chosen answer": "logicality"}.items():
            assert any(title in text and shown in text for text in titles)
    assert watched.complaints == []
    assert watched.outside((tmp_path / "r.html").as_uri()) == []


def test_an_item_is_walked_through_with_differences_marked(run: Path, tmp_path: Path, chromium: Any) -> None:
    assert kt(run, "--out", tmp_path / "r.html").returncode == 0
    page = opened(chromium, tmp_path / "r.html").page
    item = next(item for item in read_run(run).items if item["question"] == "What of 0?")
    page.fill("#search", item["id"])
    page.locator("#list button").click()
    assert page.locator("#item .facts li").count() == 3
    assert page.locator("#item .facts .difficult").count() == len(item["kept"]) == 2
    pairs = page.locator("#item .pair")
    assert pairs.count() == 3
    gone = [fact for place, fact in enumerate(item["facts"]) if place not in item["worse"]["completeness"]["places"]]
    assert pairs.nth(0).locator("del").all_text_contents() == gone
    assert pairs.nth(1).locator("ins").all_text_contents() == ["Not:"] * 3
    moved = [str(place + 1) for to, place in enumerate(item["worse"]["logicality"]["places"]) if place != to]
    assert pairs.nth(2).locator(".moved").all_text_contents() == moved
    page.reload()
    page.wait_for_selector("#item h3")
    assert page.text_content("#item .id") == item["id"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(run: Path, tmp_path: Path, chromium: Any, scheme: str) -> None:
    assert kt(run, "--out", tmp_path / "r.html").returncode == 0
    page = opened(chromium, tmp_path / "r.html", color_scheme=scheme).page
    script = CONTRAST.replace("main:not([hidden]) *, header *", "section *:not(svg *), header *, footer *")
    assert page.evaluate(script) == []


def test_four_thousand_items_are_listed_by_the_page(run: Path, tmp_path: Path, chromium: Any) -> None:
    from kt.report import write_page

    found = read_run(run)
    found.items = [{**found.items[n % ITEMS], "id": f"item-{n}"} for n in range(4000)]
    write_page(found, tmp_path / "r.html")
    page = opened(chromium, tmp_path / "r.html").page
    assert page.locator("#list button").count() == 50
    page.click("#forth")
    page.wait_for_selector("#page:text('page 2 of 80')")
    page.fill("#search", "item-3999")
    page.wait_for_selector("#found:text('1 of 4,000 items')")
