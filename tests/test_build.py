"""Whole builds through the command line: killed, raced, fed with rubbish, cut off; and what they leave behind."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import hear_interrupts
from scripted_server import KEY, Running, scripted_server


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "kt", "build-data", "--prompts", "compact", "--difficulty", "all", *map(str, args)]


def kt(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a build as a user does; a traceback is a bug whatever happens."""
    done = subprocess.run(command(*args), capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    assert "never retrieved" not in done.stderr, done.stderr
    assert "Unclosed" not in done.stderr, done.stderr
    return done


def questions(folder: Path, count: int = 40) -> Path:
    path = folder / "qa.json"
    rows = [
        {"instruction": f"What of {i}?", "input": "", "output": f"One of {i}. Two of {i}. And three."} for i in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def at(server: Running | str) -> list[str]:
    return ["--backend", "openai", "--base-url", server if isinstance(server, str) else server.url, "--model", "m"]


def tree(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_build_its_rerun_and_its_replay_are_the_same_bytes(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = ["--data", questions(tmp_path), "--cache", tmp_path / "c"]
        first = kt(*at(server), *common, "--out", tmp_path / "a")
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith(
            "read 40 items, wrote 80 rows for stage I, 120 pairs for stage II, rejected 0; 200 calls sent"
        )
        sent = len(server.received())
        assert kt(*at(server), *common, "--out", tmp_path / "b", "--workers", "1").returncode == 0
        assert kt(*at(server), *common, "--out", tmp_path / "b", "--quiet").stdout == ""
        assert len(server.received()) == sent
    replay = kt("--backend", "replay", "--model", "m", *common, "--out", tmp_path / "c2", "--json")
    assert json.loads(replay.stdout)["counters"]["sent"] == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c2")


def test_the_sets_are_what_other_tools_read(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        assert (
            kt(*at(server), "--data", questions(tmp_path, 4), "--cache", tmp_path / "c", "--out", tmp_path / "a").returncode
            == 0
        )
    sets = tmp_path / "a/sets"
    info = json.loads((sets / "dataset_info.json").read_text())
    for entry in info.values():
        rows = json.loads((sets / entry["file_name"]).read_text())
        needed = set(entry["columns"].values()) if entry.get("ranking") else {"instruction", "input", "output"}
        assert rows
        assert needed <= set(rows[0])
    trl = [json.loads(line) for line in (sets / "kc.jsonl").read_text().splitlines()]
    assert {"prompt", "chosen", "rejected", "aspect"} <= set(trl[0])
    assert len(trl) == len(json.loads((sets / "kc.ranking.json").read_text()))
    datasets = pytest.importorskip("datasets")
    for name, columns in (("ka", {"prompt", "completion"}), ("kc", {"prompt", "chosen", "rejected"})):
        loaded = datasets.load_dataset(
            "json", data_files=str(sets / f"{name}.jsonl"), cache_dir=str(tmp_path / "hf"), split="train"
        )
        assert columns <= set(loaded.column_names)


def test_rejected_answers_can_be_rephrased_too(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = ["--data", questions(tmp_path, 4), "--cache", tmp_path / "c", "--out", tmp_path / "a"]
        assert kt(*at(server), *common, "--rejected", "rephrase", "--aspect", "logicality").returncode == 0
    pairs = [json.loads(line) for line in (tmp_path / "a/sets/kc.jsonl").read_text().splitlines()]
    assert {p["aspect"] for p in pairs} == {"logicality"}
    assert all(p["rejected"].startswith("In short: ") for p in pairs)


def test_a_smaller_run_into_the_same_folder_leaves_nothing_of_the_larger(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = [*at(server), "--data", questions(tmp_path, 4), "--cache", tmp_path / "c"]
        assert kt(*common, "--out", tmp_path / "a").returncode == 0
        for out in ("a", "b"):
            assert kt(*common, "--out", tmp_path / out, "--aspect", "logicality", "--limit", "2").returncode == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert (tmp_path / "a/sets/kc-logicality.jsonl").exists()
    assert not (tmp_path / "a/sets/kc-factuality.jsonl").exists()


# ---- killed, raced, stopped ------------------------------------------------------------------------------------------


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    """Whatever the server had answered half a second before a kill -9 is in the cache and is never asked again."""
    data, draw = questions(tmp_path, 200), random.Random(5)
    with scripted_server(tmp_path, "--delay", "0.05") as server:
        run = command(*at(server), "--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "a", "--workers", 6)
        lives: list[tuple[float, float]] = []  # (started, killed) of each process that did not live to its end
        for _ in range(20):
            started = time.time()
            process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.35, 0.95))
            if process.poll() is None:
                lives.append((started, time.time()))
                process.kill()
            process.wait()
        resumed = kt(*run[6:][2:])
        assert resumed.returncode == 0, resumed.stderr
        events = [e for e in server.events() if not e["canary"]]
    sent: dict[str, float] = {}
    answered: dict[str, float] = {}
    again = 0
    for event in events:
        if event["event"] == "answered":
            answered.setdefault(event["digest"], event["time"])
        elif event["digest"] not in answered:
            sent[event["digest"]] = event["time"]
        else:
            again += 1
            # Whose answer was it? The server may write it after its asker's death, so go by when it was asked; no process
            # asks in its first 0.1 s, while Python starts.
            killed = max(life for life in lives if life[0] + 0.1 < sent[event["digest"]])[1]
            assert answered[event["digest"]] > killed - 0.5, "a completion received well before the kill was asked again"
    assert len(lives) >= 10
    assert again <= 6 * len(lives)
    with scripted_server(tmp_path / "other") as server:
        assert kt(*at(server), "--data", data, "--cache", tmp_path / "c2", "--out", tmp_path / "b").returncode == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_two_processes_send_each_request_once(tmp_path: Path) -> None:
    with scripted_server(tmp_path, "--delay", "0.02") as server:
        common = [*at(server), "--data", questions(tmp_path, 80), "--cache", tmp_path / "c"]
        both = [
            subprocess.Popen(command(*common, "--out", tmp_path / n), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for n in "ab"
        ]
        for process in both:
            assert process.wait(timeout=120) == 0, process.stderr and process.stderr.read()
        received = server.received()
    assert len(received) == 400
    assert len(set(received)) == 400
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_build_goes_on_when_the_other_is_killed(tmp_path: Path) -> None:
    """The dead process's leases hold up the living one for no longer than it takes to look."""
    with scripted_server(tmp_path, "--delay", "0.1") as server:
        common = [*at(server), "--data", questions(tmp_path), "--cache", tmp_path / "c", "--workers", "6"]
        dies = subprocess.Popen(command(*common, "--out", tmp_path / "a"), stderr=subprocess.DEVNULL)
        while not server.received():
            time.sleep(0.02)
        lives = subprocess.Popen(
            command(*common, "--out", tmp_path / "b"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while len(server.received()) < 60:
            time.sleep(0.02)
        dies.kill()
        dies.wait()
        killed = time.monotonic()
        assert lives.wait(timeout=60) == 0, lives.stderr and lives.stderr.read()
        assert time.monotonic() - killed < 15  # a lease of a process that could not be looked at would hold for 30
        received = server.received()
        assert len(set(received)) == 200
        assert len(received) <= 206


def test_what_the_fallback_answered_is_replayed_without_its_key(tmp_path: Path) -> None:
    data = questions(tmp_path, 10)
    with scripted_server(tmp_path / "api", "--need-key") as api:
        common = ["--data", data, "--cache", tmp_path / "c", "--model", "m", "--fallback", "openai"]
        common += ["--fallback-url", api.url, "--fallback-model", "big"]
        first = ["--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "a"]
        assert kt(*common, *first, OPENAI_API_KEY=KEY).returncode == 0
    replay = kt(*common, "--backend", "replay", "--out", tmp_path / "b", OPENAI_API_KEY="")
    assert replay.returncode == 0, replay.stderr
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_fallback_of_the_models_own_name_is_refused(tmp_path: Path) -> None:
    """One name and no revision is one key: the paid model's answers would stand as the local one's."""
    data = questions(tmp_path, 3)
    with scripted_server(tmp_path / "api") as api, scripted_server(tmp_path / "local") as local:
        common = [*at(local), "--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "a", "--fallback", "openai"]
        common += ["--fallback-url", api.url, "--fallback-model", "m"]
        refused = kt(*common, OPENAI_API_KEY=KEY)
        assert refused.returncode == 1
        assert "bear the same name, m" in refused.stderr
        assert kt(*common, "--revision", "local", OPENAI_API_KEY=KEY).returncode == 0


def test_ctrl_c_keeps_what_came(tmp_path: Path) -> None:
    with scripted_server(tmp_path, "--delay", "0.1") as server:
        run = command(
            *at(server), "--data", questions(tmp_path), "--cache", tmp_path / "c", "--out", tmp_path / "a", "--workers", 4
        )
        process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
        while len(server.received()) < 12:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "everything received is kept" in said
    assert "Traceback" not in said
    db = sqlite3.connect(tmp_path / "c")
    assert db.execute("SELECT count(*) FROM completions").fetchone()[0] >= 8
    assert db.execute("SELECT count(*) FROM leases").fetchone()[0] == 0


def test_a_server_killed_in_the_middle_with_and_without_a_fallback(tmp_path: Path) -> None:
    data = questions(tmp_path)
    prices = tmp_path / "configs"
    prices.mkdir()
    with scripted_server(tmp_path / "api", "--need-key") as api:
        for fallback in (True, False):
            with scripted_server(tmp_path / f"local-{fallback}", "--mode", "die", "--after", "70") as local:
                cache, out = tmp_path / f"c-{fallback}", tmp_path / f"out-{fallback}"
                extra = ["--fallback", "openai", "--fallback-url", api.url, "--fallback-model", "big"] if fallback else []
                run = [*at(local), "--data", data, "--cache", cache, "--out", out, "--retries", "0", *extra]
                done = kt(*run, OPENAI_API_KEY=KEY)
                kept = sqlite3.connect(cache).execute("SELECT model, count(*) FROM completions GROUP BY 1").fetchall()
            if fallback:
                assert done.returncode == 0, done.stderr
                assert dict(kept)["big"] == len(api.received())
                assert "by the fallback" in done.stdout
                manifest = json.loads((out / "rephrase/manifest.json").read_text())
                assert {m["model"] for m in manifest["models"]} >= {"big"}
            else:
                assert done.returncode == 1
                assert "start the server" in done.stderr
                assert "every answer received is kept" in done.stderr
                assert dict(kept)["m"] >= 60
                with scripted_server(tmp_path / "healed") as healed:
                    assert kt(*at(healed), *run[6:]).returncode == 0
                    assert len(healed.received()) == 200 - dict(kept)["m"]


def test_the_budget_stops_a_run_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    data = questions(tmp_path)
    with scripted_server(tmp_path / "api", "--need-key") as api:
        fallback = ["--fallback", "openai", "--fallback-url", api.url, "--fallback-model", "gpt-4"]
        run = [*at("http://127.0.0.1:9/v1"), "--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "a", *fallback]
        stopped = kt(*run, "--max-cost", "0.1", OPENAI_API_KEY=KEY)
        assert stopped.returncode == 1
        assert "pass --max-cost 0.1" in stopped.stderr
        spent = sqlite3.connect(tmp_path / "c").execute("SELECT sum(cost) FROM completions").fetchone()[0]
        assert 0.02 < spent <= 0.1
        assert kt(*run, "--max-cost", "5", OPENAI_API_KEY=KEY).returncode == 0
        assert len(api.received()) == 200
        assert (
            kt(*run, "--fallback-model", "unknown", "--max-cost", "1", OPENAI_API_KEY=KEY).stderr.count("no price for unknown")
            == 1
        )
        assert "no key in OPENAI_API_KEY" in kt(*run, OPENAI_API_KEY="").stderr


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "not JSON"),
        ('[{"text": "a"}]', "columns text; expected"),
        ("", "the file is empty"),
        ('[{"question": "a", "answer": ""}]', "no usable item of 1"),
        ('[{"id": 1, "question": "a", "answer": "b"}, {"id": 1, "question": "c", "answer": "d"}]', "ids must differ"),
    ],
)
def test_bad_data_is_one_sentence_and_loses_nothing(content: str, words: str, tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = [*at(server), "--cache", tmp_path / "c", "--out", tmp_path / "a"]
        assert kt(*common, "--data", questions(tmp_path, 3)).returncode == 0
        before = tree(tmp_path / "a/sets")
        (tmp_path / "bad.json").write_text(content)
        done = kt(*common, "--data", tmp_path / "bad.json")
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("kt: ")
        assert tree(tmp_path / "a/sets") == before


def test_bad_items_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = [
        {"question": "no answer?", "answer": None},
        {"question": "long?", "answer": "word " * 200_000},
        {"question": "nul?", "answer": "a\0b"},
        {"question": "good?", "answer": "This is one. This is two."},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with scripted_server(tmp_path) as server:
        done = kt(*at(server), "--data", tmp_path / "d.jsonl", "--cache", tmp_path / "c", "--out", tmp_path / "a")
    assert done.returncode == 0
    assert "rejected 3" in done.stdout
    rejects = [json.loads(line) for line in (tmp_path / "a/items/rejected.jsonl").read_text().splitlines()]
    assert [r["where"] for r in rejects] == ["d.jsonl:1", "d.jsonl:2", "d.jsonl:3"]
    assert [r["record"] for r in rejects] == rows[:3]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("html", "no completion"),
        ("401", "is the key in KT_API_KEY right?"),
        ("500", "HTTP 500"),
        ("half", "broke off"),
        ("never", "no answer within"),
        ("429", "rate limit"),
        ("503", "not now (503), asked to wait 900 s"),
    ],
)
def test_bad_servers_are_one_sentence(mode: str, words: str, tmp_path: Path) -> None:
    with scripted_server(tmp_path, "--mode", mode, "--retry-after", "900") as server:
        options = ["--retries", "1", "--timeout", "1", "--cache", tmp_path / "c", "--out", tmp_path / "a"]
        done = kt(*at(server), "--data", questions(tmp_path, 3), *options, KT_API_KEY=KEY)
    assert done.returncode == 1
    assert words in done.stderr
    assert KEY not in done.stderr


def test_a_wrong_config_names_file_line_and_key(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: [qa.json]\nout: runs/x\nmodel: m\nworkrs: 3\ndelete_share: 5e-1\nseed: many\n")
    done = kt(config)
    assert done.returncode == 1
    assert f"{config}: 2 wrong setting(s)" in done.stderr
    assert "line 4: workrs: unknown key" in done.stderr
    assert "line 6: seed" in done.stderr
    config.write_text("data: [a]\ndata: [b]\n")
    assert "not YAML" in kt(config).stderr
    assert kt(tmp_path / "none.yaml").returncode == 1


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    common = [*at("http://127.0.0.1:9/v1"), "--data", questions(tmp_path, 3)]
    out = kt(*common, "--cache", tmp_path / "c", "--out", tmp_path / "file/x")
    assert (out.returncode, "choose another --out" in out.stderr) == (1, True)
    cache = kt(*common, "--cache", tmp_path / "file/c", "--out", tmp_path / "a")
    assert (cache.returncode, "choose another --cache" in cache.stderr) == (1, True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 600 KB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount the small file system that this test fills")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("full", ["out", "cache"])
def test_a_full_disk_is_said_and_loses_nothing(full: str, small_disk: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What of {i}?", "answer": f"One of {i}. " + f"Two of {i} is long. " * 60} for i in range(120)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = {"out": tmp_path / "out", "cache": tmp_path / "c", full: small_disk / full}
    with scripted_server(tmp_path) as server:
        run = [*at(server), "--data", tmp_path / "qa.jsonl"]
        done = kt(*run, "--out", places["out"], "--cache", places["cache"])
        assert done.returncode == 1
        assert "free some space" in done.stderr, done.stderr
        kept = sqlite3.connect(places["cache"]).execute("SELECT count(*) FROM completions").fetchone()[0]
        assert kept > 0
        sent = len(server.received())
        subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
        again = kt(*run, "--out", places["out"], "--cache", places["cache"])
        assert again.returncode == 0, again.stderr
        assert len(server.received()) - sent <= 600 - kept


def test_a_corrupt_and_a_locked_cache(tmp_path: Path) -> None:
    data = questions(tmp_path, 3)
    (tmp_path / "bad").write_bytes(b"no database" * 1000)
    with scripted_server(tmp_path) as server:
        corrupt = kt(*at(server), "--data", data, "--cache", tmp_path / "bad", "--out", tmp_path / "a")
        assert (corrupt.returncode, "not a database" in corrupt.stderr) == (1, True)
        assert kt(*at(server), "--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "a").returncode == 0
        other = sqlite3.connect(tmp_path / "c", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        run = [*at(server), "--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "b", "--attempts", "1"]
        locked = kt(*run, "--prompts", "default", KT_CACHE_WAIT="0.2")
        assert (locked.returncode, "KT_CACHE_WAIT" in locked.stderr) == (1, True), locked.stderr


# ---- before and around -----------------------------------------------------------------------------------------------


def test_a_dry_run_asks_nothing_and_shows_the_first_request(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        run = [*at(server), "--data", questions(tmp_path, 10), "--cache", tmp_path / "c", "--out", tmp_path / "a"]
        first = json.loads(kt(*run, "--dry-run", "--json").stdout)
        assert sum(s["calls"] for s in first["steps"]) == 50
        assert first["first_request"]["messages"][-1]["content"].startswith("extract\nWhat of 0?")
        assert not (tmp_path / "c").exists()
        assert server.events() == []
        assert kt(*run, "--limit", "4").returncode == 0
        told = kt(*run, "--dry-run").stdout
        assert "to send: 30 calls" in told
        assert "gpt-4o-mini about $" in told


def test_usage_errors_are_two_and_versions_are_told() -> None:
    assert kt().returncode == 2
    assert kt("--workers", "0").returncode == 2
    assert subprocess.run([sys.executable, "-m", "kt", "--version"], capture_output=True).returncode == 0


def test_a_replay_that_lacks_something_exits_with_three(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        common = ["--data", questions(tmp_path, 10), "--cache", tmp_path / "c"]
        assert kt(*at(server), *common, "--out", tmp_path / "a", "--limit", "4").returncode == 0
    missed = kt("--backend", "replay", "--model", "m", *common, "--out", tmp_path / "b")
    assert missed.returncode == 3
    assert "lacks 6 completion(s)" in missed.stderr
    assert kt("--backend", "replay", "--model", "m", *common, "--out", tmp_path / "b", "--limit", "4").returncode == 0


@pytest.mark.parametrize("prompt", ["rewrite-answer", "revise"])
def test_a_replay_names_the_step_of_either_stage_that_lacks_an_answer(tmp_path: Path, prompt: str) -> None:
    with scripted_server(tmp_path) as server:
        common = ["--data", questions(tmp_path, 6), "--cache", tmp_path / "c"]
        assert kt(*at(server), *common, "--out", tmp_path / "a").returncode == 0
    with sqlite3.connect(tmp_path / "c") as db:
        db.execute("DELETE FROM completions WHERE key = (SELECT max(key) FROM completions WHERE prompt = ?)", (prompt,))
    missed = kt("--backend", "replay", "--model", "m", *common, "--out", tmp_path / "b")
    assert missed.returncode == 3
    assert f"step {prompt}: the cache lacks 1 completion(s)" in missed.stderr
    assert not (tmp_path / "b" / "manifest.json").exists()
