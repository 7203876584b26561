"""Real engines end to end: real questions through vLLM and llama.cpp, started by kt and by URL, replayed byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from conftest import DOLLY

ENGINES = [
    pytest.param("llama-cpp", marks=pytest.mark.xdist_group("llama")),
    pytest.param("vllm", marks=pytest.mark.xdist_group("vllm")),
]
ITEMS = 200


def kt(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "kt", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Real Dolly questions where they are, else as many of our own."""
    if DOLLY.exists():
        return DOLLY
    lines = tiny_models.sentences(ITEMS * 4)
    rows = [
        {"instruction": f"Tell me of case {i}.", "input": "", "output": " ".join(lines[4 * i : 4 * i + 4])}
        for i in range(ITEMS)
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows))
    return path


def server_of(engine: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("vllm_server" if engine == "vllm" else "llama_server")


def same_tree(one: Path, other: Path) -> None:
    difference = subprocess.run(["diff", "-rq", "-x", "engine.log", one, other], capture_output=True, text=True)
    assert difference.stdout == ""
    assert difference.returncode == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_two_hundred_real_questions_and_their_replay(
    engine: str, request: pytest.FixtureRequest, questions: Path, tmp_path: Path
) -> None:
    server = server_of(engine, request)
    common = ["--model", server.model, "--data", questions, "--limit", ITEMS, "--prompts", "compact", "--difficulty", "all"]
    cache = ["--cache", tmp_path / "c.sqlite"]
    live = ["--backend", engine, "--base-url", server.base_url]
    first = kt("build-data", *common, *live, *cache, "--out", tmp_path / "first", "--json", KT_API_KEY=server.api_key)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["steps"]["items"]["written"] == ITEMS
    assert json.loads(first.stdout)["counters"]["sent"] > ITEMS

    for workers in (1, 64):
        out = tmp_path / f"replay-{workers}"
        replay = kt("build-data", *common, "--backend", "replay", *cache, "--out", out, "--workers", workers)
        assert replay.returncode == 0, replay.stderr
        same_tree(tmp_path / "first", out)
    _schema_valid(tmp_path / "first")
    assert server.api_key not in (tmp_path / "c.sqlite").read_bytes().decode("latin-1")


def _schema_valid(run: Path) -> None:
    """Every record that came out of a JSON answer has the shape that was asked for; every reject has its reason."""
    facts = [json.loads(line) for line in (run / "sets/facts.jsonl").read_text().splitlines()]
    assert facts
    assert all(r["facts"] and all(isinstance(f, str) and f for f in r["facts"]) for r in facts)
    by_id = {r["id"]: r for r in facts}
    for line in (run / "revise/records.jsonl").read_text().splitlines():
        revised = json.loads(line)
        assert len(revised["facts"]) == len(by_id[revised["id"]]["facts"])
    rejects = [json.loads(x) for p in run.glob("*/rejected.jsonl") for x in p.read_text().splitlines()]
    assert all(r["reason"] and r["record"] for r in rejects)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_worker_and_many_ask_alike(engine: str, request: pytest.FixtureRequest, questions: Path, tmp_path: Path) -> None:
    server = server_of(engine, request)
    common = ["--model", server.model, "--data", questions, "--limit", 12, "--prompts", "compact", "--difficulty", "all"]
    for workers in (1, 64):
        live = ["--backend", engine, "--base-url", server.base_url, "--workers", workers]
        out = ["--out", tmp_path / f"w{workers}", "--cache", tmp_path / f"{workers}.sqlite"]
        done = kt("build-data", *common, *live, *out, KT_API_KEY=server.api_key)
        assert done.returncode == 0, done.stderr
    same_tree(tmp_path / "w1", tmp_path / "w64")


@pytest.mark.xdist_group("llama")
def test_kt_starts_the_engine_only_when_something_is_missing(tiny_gguf: Path, questions: Path, tmp_path: Path) -> None:
    common = ["--backend", "llama-cpp", "--model", tiny_gguf, "--offline", "--data", questions, "--limit", 3]
    common += ["--prompts", "compact", "--difficulty", "random", "--cache", tmp_path / "c.sqlite"]
    assert (done := kt("build-data", *common, "--out", tmp_path / "a")).returncode == 0, done.stderr
    assert (tmp_path / "a/engine.log").exists()
    assert (done := kt("build-data", *common, "--out", tmp_path / "b")).returncode == 0, done.stderr
    assert not (tmp_path / "b/engine.log").exists()
    same_tree(tmp_path / "a", tmp_path / "b")


@pytest.mark.xdist_group("llama")
def test_an_engine_of_kts_own_that_dies_is_unavailable_with_its_log(tiny_gguf: Path, tmp_path: Path) -> None:
    import asyncio

    from kt.backends import writers
    from kt.cache import Cache
    from kt.config import BuildConfig
    from kt.errors import Unavailable
    from kt.request import chat

    config = BuildConfig(data=["x"], out="x", backend="llama-cpp", model=str(tiny_gguf), retries=0)
    asked = chat([{"role": "user", "content": "ask\nQ?\nA fact."}], {"max_tokens": 8, "temperature": 0})

    async def ask_kill_ask() -> None:
        with Cache(tmp_path / "c") as cache:
            (engine,) = writers(config, cache, tmp_path / "log")
            try:
                await engine.send(asked)
                os.kill(engine.server.pid, signal.SIGKILL)  # type: ignore[attr-defined]
                engine.server.process.wait()  # type: ignore[attr-defined]
                await asyncio.sleep(0.5)
                with pytest.raises(Unavailable, match=r"llama-cpp ended.*The end of"):
                    await engine.send(asked)
            finally:
                await engine.close()
                engine.stop()  # type: ignore[attr-defined]

    asyncio.run(ask_kill_ask())


@pytest.mark.xdist_group("llama")
def test_other_weights_under_the_same_name_are_not_mixed(tiny_gguf: Path, questions: Path, tmp_path: Path) -> None:
    from kt.gguf import write_gguf

    other = tmp_path / "other" / tiny_gguf.name
    write_gguf(tiny_models.make_llama(tmp_path / "llama", seed=1), other)
    common = ["build-data", "--backend", "llama-cpp", "--data", questions, "--limit", 2, "--prompts", "compact"]
    common += ["--difficulty", "all", "--cache", tmp_path / "c.sqlite", "--json"]
    counts = []
    for name, model in (("a", tiny_gguf), ("b", other), ("c", tiny_gguf)):
        done = kt(*common, "--model", model, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["counters"]["sent"])
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == 0
    by_name = kt("build-data", "--backend", "replay", "--model", tiny_gguf.stem, *common[3:], "--out", tmp_path / "d")
    assert by_name.returncode == 1
    assert "several weights" in by_name.stderr


@pytest.mark.xdist_group("vllm")
def test_difficulty_by_the_served_models_own_perplexity(
    vllm_server: Any, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    """prompt_logprobs of the served model give the perplexities that the same weights give in this process."""
    common = ["build-data", "--data", questions, "--limit", 5, "--prompts", "compact", "--cache", tmp_path / "c.sqlite"]
    live = ["--backend", "vllm", "--base-url", vllm_server.base_url, "--model", vllm_server.model]
    key = {"KT_API_KEY": vllm_server.api_key}
    served = kt(*common, *live, "--out", tmp_path / "served", **key)
    assert served.returncode == 0, served.stderr
    local = kt(*common, *live, "--scorer", tiny_llama, "--out", tmp_path / "local", **key)
    assert local.returncode == 0, local.stderr
    ours, theirs = (
        [
            p
            for line in (tmp_path / run / "score/records.jsonl").read_text().splitlines()
            for p in json.loads(line)["perplexities"]
        ]
        for run in ("local", "served")
    )
    assert ours == pytest.approx(theirs, rel=2e-3)
    replay = [*common, "--backend", "replay", "--model", vllm_server.model]
    assert kt(*replay, "--out", tmp_path / "again").returncode == 0
    same_tree(tmp_path / "served", tmp_path / "again")
    assert kt(*replay, "--scorer", tiny_llama, "--out", tmp_path / "again-local").returncode == 0
    same_tree(tmp_path / "local", tmp_path / "again-local")


def test_how_an_engine_computes_is_part_of_the_key(tmp_path: Path) -> None:
    from kt.backends import writers
    from kt.cache import Cache
    from kt.config import BuildConfig

    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF, and weights")
    servers: list[dict[str, Any]] = [{}, {"dtype": "float16"}, {"extra_args": ["--quantization", "fp8"]}, {"max_model_len": 9}]
    with Cache(tmp_path / "c.sqlite") as cache:
        revisions = []
        for server in servers:
            config = {"data": ["x"], "out": str(tmp_path), "model": str(model), "backend": "llama-cpp", "server": server}
            asked = [BuildConfig.model_validate({**config, "backend": backend}) for backend in ("llama-cpp", "replay")]
            live, replay = (writers(one, cache, tmp_path / "log")[0].revision for one in asked)
            assert live == replay
            revisions.append(live)
    assert revisions[3] == revisions[0]
    assert len(set(revisions)) == 3
