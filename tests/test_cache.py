"""The cache keeps what it promises: nothing lost, nothing mixed, nothing asked twice, readable by anything."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kt.cache import LEASE_SECONDS, Cache, Row, now
from kt.cache_admin import export, import_jsonl, list_rows, merge, prune, search, show, stats, verify
from kt.errors import CacheError, InputError
from kt.request import Request, canonical, key_of


def row(question: str, text: str = "yes", *, created: str | None = None, model: str = "m", status: str = "ok") -> Row:
    request = canonical(Request("chat", {"messages": [{"role": "user", "content": question}]}), model, "")
    response = json.dumps({"choices": [{"message": {"content": text}}]})
    return Row(
        key_of(request), "chat", model, "", 0, "extract", "h", status, text, "stop", model, "vllm", "1",
        5, 2, 0.5, 0.1, created or now(), request.decode(), response,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "c.sqlite")


def dump(cache: Cache) -> list[tuple[object, ...]]:
    tables = ("completions", "conflicts", "models")
    return [r for t in tables for r in cache.db.execute(f"SELECT * FROM {t} ORDER BY 1, 2, 3")]


def test_put_then_get(cache: Cache) -> None:
    one = row("a")
    cache.put([one])
    assert cache.get(one.key) == one.completion()
    assert cache.get("0" * 64) is None


def test_what_is_there_is_never_replaced(cache: Cache) -> None:
    cache.put([row("a", "first")])
    cache.put([row("a", "second")])
    assert [r[8] for r in dump(cache)] == ["first"]


def test_a_row_is_committed_before_put_returns(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from test_cache import row; from kt.cache import Cache\n"
        "c = Cache(sys.argv[1])\n"
        "for i in range(50): c.put([row(str(i))])\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "c.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path), str(Path(__file__).parent)]).returncode == -9
    assert len(dump(Cache(path))) == 50


def test_many_processes_may_make_the_file_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_cache import row; from kt.cache import Cache\n"
        "c = Cache(sys.argv[1])\n"
        "for i in range(20): c.put([row(f'{sys.argv[3]} {i}')])\n"
    )
    arguments = [str(tmp_path / "c.sqlite"), str(Path(__file__).parent)]
    running = [subprocess.Popen([sys.executable, "-c", code, *arguments, str(n)], stderr=subprocess.PIPE) for n in range(4)]
    for process in running:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    assert len(dump(Cache(tmp_path / "c.sqlite"))) == 80


# ---- leases ----------------------------------------------------------------------------------------------------------


def claim(cache: Cache, key: str) -> bool:
    with cache.writing() as db:
        return cache.claim(db, key)


def test_a_lease_is_one_holders_until_the_answer_is_there(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    asked = row("a")
    assert claim(one, asked.key)
    assert claim(one, asked.key)
    assert not claim(other, asked.key)
    one.put([asked])
    assert not claim(other, asked.key)
    assert other.get(asked.key)


def test_a_lease_given_back_is_free(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    assert claim(one, "k")
    one.release(["k"])
    assert claim(other, "k")
    other.close()
    assert claim(one, "k")


def test_the_lease_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from kt.cache import Cache\nc = Cache(sys.argv[1])\n"
        "with c.writing() as db: assert c.claim(db, 'k')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")])
    assert claim(Cache(tmp_path / "c"), "k")


def test_a_lease_expires_unless_renewed(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    assert claim(one, "k")
    with other.writing() as db:  # as if another host, which cannot be looked at, had said nothing for so long
        db.execute("UPDATE holders SET host = 'elsewhere', expires = ?", (time.time() + LEASE_SECONDS / 2,))
    assert not claim(other, "k")
    with other.writing() as db:
        db.execute("UPDATE holders SET expires = ? WHERE host = 'elsewhere'", (time.time() - 1,))
    assert claim(other, "k")
    other.release(["k"])
    one.heartbeat()
    assert claim(one, "k")
    assert not claim(other, "k")


# ---- files that are not as they should be ----------------------------------------------------------------------------


def test_a_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(CacheError, match=r"not a database.*recover"):
        Cache(path)
    assert path.read_bytes() == b"this is no database at all" * 100


def test_a_damaged_page_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with Cache(path) as cache:
        cache.put([row(str(i), "x" * 500) for i in range(200)])
    data = bytearray(path.read_bytes())
    data[40_000:] = b"\xff" * (len(data) - 40_000)
    path.write_bytes(data)
    with Cache(path) as cache:
        assert verify(cache)
    with pytest.raises(CacheError, match="damaged"), Cache(path) as cache:
        export(cache, tmp_path / "e.jsonl")
    assert not (tmp_path / "e.jsonl").exists()


def test_a_file_locked_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Cache(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CacheError, match=r"locked.*KT_CACHE_WAIT"):
        Cache(path, busy_seconds=0.1).put([row("a")])
    other.execute("ROLLBACK")
    Cache(path, busy_seconds=0.1).put([row("a")])


def test_a_newer_format_and_another_programs_database(tmp_path: Path) -> None:
    Cache(tmp_path / "new").close()
    db = sqlite3.connect(tmp_path / "new")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CacheError, match="newer kt"):
        Cache(tmp_path / "new")
    db = sqlite3.connect(tmp_path / "other")
    db.execute("CREATE TABLE customers (id)")
    db.close()
    with pytest.raises(InputError, match=r"no kt cache.*customers"):
        Cache(tmp_path / "other")


def test_a_read_only_medium_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    with Cache(folder / "c.sqlite") as cache:
        cache.put([row("a")])
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    (folder / "c.sqlite").chmod(stat.S_IRUSR)
    try:
        with Cache(folder / "c.sqlite", read_only=True) as cache:
            assert cache.get(row("a").key)
            with pytest.raises(CacheError, match=r"readonly|cannot be written"):
                cache.put([row("b")])
    finally:
        folder.chmod(0o700)
    with pytest.raises(CacheError, match="no such cache"):
        Cache(tmp_path / "none", read_only=True)


# ---- carrying and joining --------------------------------------------------------------------------------------------


def caches(tmp_path: Path, *contents: list[Row]) -> list[Cache]:
    made = []
    for number, rows in enumerate(contents):
        cache = Cache(tmp_path / f"{number}-{time.time_ns()}.sqlite")
        cache.put(rows)
        made.append(cache)
    return made


CONTENTS = (
    [row("a", created="2026-01-01"), row("b", "early", created="2026-01-02"), row("d", "x", created="2026-03-01")],
    [row("b", "late", created="2026-02-02"), row("c", created="2026-01-03"), row("a", created="2025-12-31")],
    [row("b", "third", created="2026-01-01"), row("d", "y", created="2026-03-01")],
)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_merge_is_commutative_and_idempotent(tmp_path: Path, order: tuple[int, ...]) -> None:
    results = []
    for way in ((0, 1, 2), order):
        first, *others = (caches(tmp_path, *CONTENTS)[i] for i in way)
        for other in others:
            merge(first, other)
        results.append(dump(first))
        for other in others:
            merged = merge(first, other)
            assert merged.added == 0
        assert dump(first) == results[-1]
    assert results[0] == results[1]


def test_merge_reports_conflicts_and_keeps_both(tmp_path: Path) -> None:
    one, other, _ = caches(tmp_path, *CONTENTS)
    assert merge(one, other, dry_run=True).conflicts == [row("b").key]
    assert len(dump(one)) == 3
    merged = merge(one, other)
    assert (merged.added, merged.same, merged.conflicts) == (1, 1, [row("b").key])
    assert one.get(row("b").key).text == "early"  # type: ignore[union-attr]
    assert one.db.execute("SELECT text FROM conflicts").fetchall() == [("late",)]


def test_export_and_import(tmp_path: Path) -> None:
    one, other = caches(tmp_path, CONTENTS[0], [])
    assert export(one, tmp_path / "e.jsonl") == 3
    assert import_jsonl(other, tmp_path / "e.jsonl").added == 3
    assert import_jsonl(other, tmp_path / "e.jsonl").same == 3
    export(other, tmp_path / "f.jsonl")
    assert (tmp_path / "e.jsonl").read_bytes() == (tmp_path / "f.jsonl").read_bytes()
    assert other.revisions("m", "write") == [""]


def test_a_changed_export_is_refused(tmp_path: Path, cache: Cache) -> None:
    (one,) = caches(tmp_path, CONTENTS[0])
    export(one, tmp_path / "e.jsonl")
    lines = (tmp_path / "e.jsonl").read_text()
    (tmp_path / "e.jsonl").write_text(lines.replace('\\"content\\":\\"d\\"', '\\"content\\":\\"z\\"'))
    with pytest.raises(InputError, match="not the hash"):
        import_jsonl(cache, tmp_path / "e.jsonl")
    assert dump(cache) == []
    (tmp_path / "e.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r":1: no key"):
        import_jsonl(cache, tmp_path / "e.jsonl")


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_looking_into_it(cache: Cache) -> None:
    cache.put([*CONTENTS[0], row('100% of _ü_ \\ "quoted"', "naïve 50%", model="n"), row("z", "", status="empty")])
    assert stats(cache)["completions"] == 5
    assert {g["model"]: g["completions"] for g in stats(cache)["groups"] if g["status"] == "ok"} == {"m": 3, "n": 1}
    assert [r["model"] for r in list_rows(cache, 10, model="n")] == ["n"]
    assert len(list_rows(cache, 2)) == 2
    for text in ("100% of", "_ü_", '"quoted"', "\\", "NAÏVE 50%".replace("Ï", "ï"), "50%"):
        assert [r["model"] for r in search(cache, text, 5)] == ["n"], text
    assert search(cache, "100_ of", 5) == []
    assert show(cache, row("a").key[:20])["request"]["body"]["messages"][0]["content"] == "a"
    for key, words in (("0" * 64, "no key begins"), ("xyz", "hex"), ("", "hex")):
        with pytest.raises(InputError, match=words):
            show(cache, key)


def test_verify_finds_what_was_changed(cache: Cache) -> None:
    cache.put(CONTENTS[0])
    assert verify(cache) == []
    cache.db.execute("UPDATE completions SET request = replace(request, '\"a\"', '\"e\"')")
    assert verify(cache) == [f"{row('a').key}: is not the hash of its request"]


def test_prune_removes_what_is_named_and_nothing_unnamed(cache: Cache) -> None:
    cache.put([*CONTENTS[0], row("q", model="gpt"), row("r", status="invalid")])
    with pytest.raises(InputError, match="name"):
        prune(cache)
    assert prune(cache, model="gpt", dry_run=True) == 1
    assert prune(cache, model="gpt") == 1
    assert prune(cache, status="invalid") == 1
    assert prune(cache, before="2026-01-02") == 1
    assert {r[8] for r in dump(cache)} == {"early", "x"}


def test_other_tools_read_it(tmp_path: Path, cache: Cache) -> None:
    cache.put(CONTENTS[0])
    command = [sys.executable, "-m", "sqlite_utils", "query", str(cache.path), "SELECT json_extract(request, '$.model') AS m,"]
    command[-1] += " json_extract(response, '$.choices[0].message.content') AS t FROM completions"
    read = subprocess.run(command, capture_output=True, text=True)
    assert {(r["m"], r["t"]) for r in json.loads(read.stdout)} == {("m", "yes"), ("m", "early"), ("m", "x")}
    datasette = Path(sys.executable).with_name("datasette")
    if datasette.exists():
        cache.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        served = subprocess.run(
            [datasette, cache.path, "--get", "/c/completions.json?_shape=array"], capture_output=True, text=True
        )
        assert {r["text"] for r in json.loads(served.stdout)} == {"yes", "early", "x"}
