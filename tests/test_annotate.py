"""Judging by hand: the draw of places, bad input, what is kept, what the server refuses, and the page in a real Chromium."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import Watched

from kt.annotate import Study, export, start_study
from kt.errors import InputError
from kt.judge import CRITERIA
from kt.records import read_jsonl, write_jsonl

NASTY = "<script>alert('x')</script><img src=http://192.0.2.1/x onerror=alert(1)> & </textarea>"


def make_answers(folder: Path, count: int = 6) -> list[str]:
    """Write test items and two methods' answers; return the options that name them."""
    items = [{"id": f"q{i}", "question": f"What of {i}?", "answer": f"Gold of {i}."} for i in range(count)]
    write_jsonl(folder / "test.jsonl", items)
    for name in ("mine", "base"):
        rows = [{**item, "answer": f"{'First' if name == 'mine' else 'Second'} text about {item['id']}."} for item in items]
        rows[0]["answer"] = NASTY if name == "mine" else ""
        write_jsonl(folder / name / "records.jsonl", rows)
    answers = [f"mine={folder / 'mine'}", f"base={folder / 'base'}"]
    return ["--answers", answers[0], "--answers", answers[1], "--data", str(folder / "test.jsonl")]


def study_of(folder: Path, count: int = 6, seed: int = 42) -> Study:
    make_answers(folder, count)
    answers = {"mine": folder / "mine", "base": folder / "base"}
    return start_study(folder / "human", answers, [str(folder / "test.jsonl")], seed, None)


def kt(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "annotate", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_places_are_drawn_by_item_and_seed(tmp_path: Path) -> None:
    study = study_of(tmp_path, 40)
    for task in study.tasks:
        names = ["mine", "base"]
        random.Random(f"42:annotate:{task.id}").shuffle(names)
        assert [task.name_a, task.name_b] == names
        if task.id != "q0":
            assert task.text_a.startswith("First" if task.name_a == "mine" else "Second")
    assert {task.name_a for task in study.tasks} == {"mine", "base"}


def test_the_last_judgement_counts_and_comes_out_unblinded(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    mine_first = next(task for task in study.tasks if task.name_a == "mine")
    base_first = next(task for task in study.tasks if task.name_a == "base")
    for task in (mine_first, base_first):
        study.judge("Ada", task.id, "factuality", "tie")
        study.judge("Ada", task.id, "factuality", "A")
    study.judge("Ada", mine_first.id, "logicality", "tie")
    found = {(r["item"], r["criterion"]): r["outcome"] for r in study.records()}
    assert found == {
        (mine_first.id, "factuality"): "win",
        (base_first.id, "factuality"): "lose",
        (mine_first.id, "logicality"): "tie",
    }
    assert export(study, tmp_path / "j.jsonl") == export(study, tmp_path / "j.csv") == 3
    with (tmp_path / "j.csv").open() as stream:
        assert list(csv.DictReader(stream)) == list(read_jsonl(tmp_path / "j.jsonl"))
    assert [r["id"] for r in study.records() if r["outcome"] == "tie"] == [f"{mine_first.id}/logicality/mine/base"]


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    options = make_answers(tmp_path)
    out = ["--out", tmp_path / "human"]
    rows = list(read_jsonl(tmp_path / "base/records.jsonl"))
    write_jsonl(tmp_path / "short/records.jsonl", rows[:4])
    short = kt(*options[:3], f"base={tmp_path / 'short'}", *options[4:], *out)
    assert short.returncode == 1
    assert "q4, q5" in short.stderr
    write_jsonl(tmp_path / "other/records.jsonl", [*rows, {"id": "q99", "question": "?", "answer": "x"}])
    assert "q99" in kt(*options[:3], f"base={tmp_path / 'other'}", *options[4:], *out).stderr
    assert not (tmp_path / "human").exists()
    assert "two, each as NAME=DIR" in kt(*options[:2], *options[4:], *out).stderr
    assert kt(*options[:4], *out).returncode == 2
    assert "no study here" in kt(*out).stderr
    assert "no annotator's name" in kt(*options, *out, "--annotator", "=cmd").stderr
    study_of(tmp_path).close()
    assert "holds another study" in kt(*options, *out, "--seed", "7").stderr
    for name in ("judgements.sqlite", "judgements.sqlite-wal"):
        assert "is the study itself" in kt(*out, "--export", tmp_path / "human" / name).stderr
    study_of(tmp_path).close()
    (tmp_path / "human/judgements.sqlite").write_bytes(b"rubbish" * 100)
    assert "not a study" in kt(*out, "--agreement").stderr


def test_items_without_a_gold_answer_are_counted_rejects(tmp_path: Path) -> None:
    options = make_answers(tmp_path)
    items = list(read_jsonl(tmp_path / "test.jsonl"))
    write_jsonl(tmp_path / "test.jsonl", [{**item, "answer": "" if item["id"] == "q2" else item["answer"]} for item in items])
    answers = {"mine": tmp_path / "mine", "base": tmp_path / "base"}
    study = start_study(tmp_path / "human", answers, [options[-1]], 42, None)
    assert [task.id for task in study.tasks] == ["q0", "q1", "q3", "q4", "q5"]
    assert study.about["rejected"] == 1
    [reject] = read_jsonl(tmp_path / "human/rejected.jsonl")
    assert "answer" in reject["reason"]


def test_what_is_no_judgement_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    for bad in (("Ada", "none", "factuality", "A"), ("Ada", "q1", "beauty", "A"), ("Ada", "q1", "factuality", "C")):
        with pytest.raises(InputError):
            study.judge(*bad)
    with pytest.raises(InputError, match="name"):
        study.judge("", "q1", "factuality", "A")
    assert list(study.records()) == []


# ---- the server ------------------------------------------------------------------------------------------------------


class Serving:
    """A `kt annotate` under way."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.root, _, self.token = url.partition("#")
        self.url = url

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return said


@contextmanager
def serving(*options: object) -> Iterator[Serving]:
    from conftest import hear_interrupts

    command = [sys.executable, "-m", "kt", "annotate", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts, env={**os.environ})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Serving(process, line.split(" at ")[1].split(" ")[0])
    finally:
        process.kill()
        process.wait()


def test_the_server_keeps_its_doors_shut(tmp_path: Path) -> None:
    options = make_answers(tmp_path)
    with serving(*options, "--out", tmp_path / "human") as server:
        token = {"X-KT-Token": server.token}
        body = {"annotator": "Ada", "id": "q1", "criterion": "factuality", "choice": "A"}
        assert server.ask("api/judgement", body)[0] == 403
        assert server.ask("api/judgement", body, **{"X-KT-Token": "wrong"})[0] == 403
        assert server.ask("api/start?annotator=Ada")[0] == 403
        assert server.ask("api/start?annotator=Ada", **token, Host="evil.example")[0] == 403
        assert server.ask("api/judgement", {**body, "choice": "C"}, **token)[0] == 400
        assert server.ask("api/judgement", [1], **token)[0] == 400
        assert server.ask("assets/..%2f__init__.py", **token)[0] == 404
        assert server.ask("api/item/99?annotator=Ada", **token)[0] == 400
        status, saved = server.ask("api/judgement", body, **token)
        assert (status, saved) == (200, {"choices": {"factuality": "A"}})
        with urllib.request.urlopen(server.root) as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert server.token not in reply.read().decode()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        server.process.kill()
    with Study(tmp_path / "human").db as db:  # what was answered is on the disk, whatever became of the server
        assert db.execute("SELECT annotator, task, criterion, choice FROM judgements").fetchall() == [
            ("Ada", "q1", "factuality", "A")
        ]
    assert "wrote 1 judgements" in kt("--out", tmp_path / "human", "--export", tmp_path / "j.csv").stdout


# ---- the page, in a real browser -------------------------------------------------------------------------------------


def begin(watched: Watched, url: str, name: str) -> Any:
    page = watched.page
    page.goto(url)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#work:not([hidden])")
    return page


def at_item(page: Any, number: int) -> None:
    page.wait_for_selector(f"#place:text('Item {number} of')")


def test_judging_by_keyboard_and_going_on_after_a_reload(tmp_path: Path, chromium: Any) -> None:
    options = make_answers(tmp_path)
    with serving(*options, "--out", tmp_path / "human") as server:
        watched = Watched(chromium)
        bodies: list[str] = []
        watched.page.on("response", lambda reply: bodies.append(reply.text()) if "/api/" in reply.url else None)
        page = begin(watched, server.url, "Ada Lovelace")
        texts = {page.text_content("#answer-a"), page.text_content("#answer-b")}
        assert texts == {NASTY, "(an empty answer)"}
        assert page.query_selector("main img, main script") is None
        for key in ("a", "e"):
            page.keyboard.press(key)
        page.locator("[aria-pressed=true]").nth(1).wait_for()
        page.reload()
        page.locator("[aria-pressed=true]").nth(1).wait_for()
        at_item(page, 1)
        page.keyboard.press("3")
        at_item(page, 2)
        page.keyboard.type("aab")  # at once: nothing pressed is lost
        at_item(page, 3)
        page.keyboard.press("p")
        at_item(page, 2)
        page.focus(".criterion[data-criterion=factuality] button")
        page.keyboard.press("b")  # a change of mind about the criterion that has the focus
        page.wait_for_selector(".criterion[data-criterion=factuality] [data-choice=B][aria-pressed=true]")
        page.keyboard.press("u")
        at_item(page, 3)
        for _ in range(4):
            page.keyboard.type("eee")
        page.wait_for_selector("#finished:not([hidden])")
        assert page.text_content("#count") == "6 of 6 judged"
        assert watched.complaints == []
        assert watched.outside(server.root) == []
        assert bodies
        assert not [body for body in bodies if "mine" in body or "base" in body], "the page must not know the methods"
        assert "18 judgements of 6 items by Ada Lovelace" in server.stop()
    study = Study(tmp_path / "human")
    assert study.of("Ada Lovelace")["q0"] == dict(zip(CRITERIA, ("A", "tie", "B"), strict=True))
    assert study.of("Ada Lovelace")["q1"] == dict(zip(CRITERIA, ("A", "B", "B"), strict=True))
    assert json.loads((tmp_path / "human/manifest.json").read_text())["written"] == 18


def test_four_thousand_items_of_which_most_are_judged(tmp_path: Path, chromium: Any) -> None:
    study = study_of(tmp_path, 4000)
    made = [("Bo", task.id, criterion, "A", "2026-01-01T00:00:00Z") for task in study.tasks[:3990] for criterion in CRITERIA]
    study.db.execute("BEGIN")
    study.db.executemany("INSERT INTO judgements (annotator, task, criterion, choice, made) VALUES (?, ?, ?, ?, ?)", made)
    study.db.execute("COMMIT")
    study.close()
    with serving("--out", tmp_path / "human", "--annotator", "Bo") as server:
        watched = Watched(chromium)
        watched.page.goto(server.url)
        at_item(watched.page, 3991)
        assert watched.page.text_content("#count") == "3990 of 4000 judged"
        watched.page.keyboard.type("abe")
        at_item(watched.page, 3992)
        assert watched.page.text_content("#count") == "3991 of 4000 judged"
        assert watched.complaints == []


def test_a_judgement_that_is_not_saved_is_not_shown_as_saved(tmp_path: Path, chromium: Any) -> None:
    options = make_answers(tmp_path)
    with serving(*options, "--out", tmp_path / "human", "--annotator", "Bo") as server:
        watched = Watched(chromium)
        page = watched.page
        page.goto(server.url)
        page.wait_for_selector("#work:not([hidden])")
        page.keyboard.press("a")
        page.wait_for_selector("[aria-pressed=true]")
        server.process.kill()
        server.process.wait()
        page.keyboard.press("a")
        page.wait_for_selector("#problem:not([hidden])")
        assert "does not answer" in page.text_content("#problem")
        assert len(page.query_selector_all("[aria-pressed=true]")) == 1


def test_every_control_has_a_name_and_the_tab_key_reaches_all(tmp_path: Path, chromium: Any) -> None:
    options = make_answers(tmp_path)
    with serving(*options, "--out", tmp_path / "human", "--annotator", "Bo", "--no-token", "--show-gold") as server:
        assert "#" not in server.url
        page = Watched(chromium).page
        page.goto(server.url)
        page.wait_for_selector("#work:not([hidden])")
        for criterion in CRITERIA:
            group = page.get_by_role("group", name=criterion.capitalize())
            for label in ("A better", "Equal", "B better"):
                assert group.get_by_role("button", name=label, exact=True).count() == 1
        assert page.get_by_role("progressbar", name="0 of 6 judged").count() == 1
        assert page.get_by_role("region", name="Answer A").count() == 1
        stops: list[str] = []
        while len(stops) < 40 and stops.count("SUMMARY") < 2:  # once around, from the question on
            page.keyboard.press("Tab")
            stops.append(page.evaluate(STOP))
        assert stops.count("SUMMARY") == 2
        assert [stop for stop in stops if ":" in stop] == [f"{c}:{choice}" for c in CRITERIA for choice in ("A", "tie", "B")]
        rest = [stop for stop in stops if ":" not in stop]
        assert rest[-5:] == ["skip", "help-button", "next", "first-open", "SUMMARY"]
        page.get_by_role("group", name="Completeness").get_by_role("button", name="Equal").focus()
        page.keyboard.press("Space")
        page.wait_for_selector(".criterion[data-criterion=completeness] [aria-pressed=true]")
        page.wait_for_selector(".criterion[data-criterion=factuality] button:focus")


STOP = """(() => { const at = document.activeElement, whole = at.closest('.criterion');
  return whole ? `${whole.dataset.criterion}:${at.dataset.choice}` : at === document.body ? 'end' : at.id || at.tagName; })()"""

CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("main:not([hidden]) *, header *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.outerHTML.slice(0, 80));
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_light_and_dark(tmp_path: Path, chromium: Any, scheme: str) -> None:
    options = make_answers(tmp_path)
    with serving(*options, "--out", tmp_path / "human", "--annotator", "Bo") as server:
        page = Watched(chromium, color_scheme=scheme).page
        page.goto(server.url)
        page.wait_for_selector("#work:not([hidden])")
        page.keyboard.press("a")
        page.wait_for_selector("[aria-pressed=true]")
        assert page.evaluate(CONTRAST) == []
        red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
        assert (red > 200) == (scheme == "light")
