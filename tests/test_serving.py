"""Engines are started, watched and stopped, whatever ends the program that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import hear_interrupts

from kt.errors import EngineError, InputError
from kt.serving import serve

pytestmark = pytest.mark.xdist_group("llama")


def get(url: str, key: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def processes_with(text: str) -> list[int]:
    """The processes whose command line or environment holds a text: an engine's children inherit both."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in seen and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_until_gone(text: str, seconds: float = 20) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := processes_with(text)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def test_llama_cpp_wants_its_key_and_hides_it(llama_server: Any) -> None:
    assert get(llama_server.base_url + "/models", llama_server.api_key)[1]["data"][0]["id"] == llama_server.model
    assert get(llama_server.base_url + "/models")[0] == 401
    commands = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert llama_server.api_key not in commands
    assert llama_server.api_key not in repr(llama_server)
    assert llama_server.api_key not in llama_server.log_path.read_text()


@pytest.mark.xdist_group("vllm")
def test_vllm_wants_its_key_and_hides_it(vllm_server: Any) -> None:
    assert get(vllm_server.base_url + "/models", vllm_server.api_key)[1]["data"][0]["id"] == vllm_server.model
    assert get(vllm_server.base_url + "/models")[0] == 401
    commands = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert vllm_server.api_key not in commands
    assert vllm_server.api_key not in vllm_server.log_path.read_text()


def test_stops_with_the_block_and_on_an_exception(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), serve("llama-cpp", tiny_gguf, log_path=tmp_path / "log") as server:
        server.check()
        _ = 1 / 0
    assert server.process.poll() is not None
    with pytest.raises(EngineError, match="ended"):
        server.check()


CHILD = """
import sys, time
from kt.serving import serve
with serve(sys.argv[1], sys.argv[2], log_path=sys.argv[3], max_model_len=512) as server:
    print(server.base_url, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program of its own that serves a model, and a mark that all its processes carry in their environment."""
    engine, model = request.param
    mark = f"kt-test-{os.getpid()}-{time.time_ns()}"
    path = request.getfixturevalue(model)
    command = [sys.executable, "-c", CHILD, engine, str(path), str(tmp_path / "log")]
    environment = {**os.environ, "KT_TEST_MARK": mark}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts)
    assert program.stdout is not None
    assert program.stdout.readline().startswith("http://127.0.0.1:"), (tmp_path / "log").read_text()
    assert len(processes_with(mark)) >= 3  # the program, the supervisor, the engine
    yield program, mark
    program.kill()
    program.wait()


@pytest.mark.parametrize("started", [("llama-cpp", "tiny_gguf")], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_program(started: tuple[subprocess.Popen[str], str], number: signal.Signals) -> None:
    program, mark = started
    program.send_signal(number)
    program.wait(timeout=30)
    assert wait_until_gone(mark) == []


@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("started", [("vllm", "tiny_llama")], indirect=True)
def test_vllm_and_its_children_do_not_outlive_a_killed_program(started: tuple[subprocess.Popen[str], str]) -> None:
    pytest.importorskip("vllm")
    program, mark = started
    program.kill()
    program.wait()
    assert wait_until_gone(mark) == []


def test_a_killed_engine_is_noticed_with_its_log(tiny_gguf: Path, tmp_path: Path) -> None:
    with serve("llama-cpp", tiny_gguf, log_path=tmp_path / "log") as server:
        mark = server.base_url.rsplit(":", 1)[1].split("/")[0]
        engine = int(subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()[0])
        os.kill(engine, signal.SIGKILL)
        server.process.wait(timeout=10)
        with pytest.raises(EngineError, match="llama-cpp ended") as caught:
            server.check()
    assert mark in str(caught.value)


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path, tiny_llama: Path, tiny_gguf: Path) -> None:
    log = tmp_path / "log"
    for engine, model, options, words in (
        ("llama-cpp", "/nowhere/m.gguf", {}, "no such model"),
        ("llama-cpp", tiny_llama, {}, "GGUF"),
        ("vllm", tiny_gguf, {}, "folder"),
        ("vllm", tmp_path, {}, "config.json"),
        ("llama-cpp", tiny_gguf, {"adapters": {"a": "b"}}, "adapters"),
        ("llama-cpp", tiny_gguf, {"host": "0.0.0.0"}, "other machines"),
        ("ollama", tiny_gguf, {}, "choose one of"),
    ):
        with pytest.raises(InputError, match=words), serve(engine, model, log_path=log, **options):
            pass
    assert not log.exists()


def test_a_broken_model_ends_with_the_end_of_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match="llama-cpp ended"), serve("llama-cpp", broken, log_path=tmp_path / "log"):
        pass


def test_kt_serve_names_the_key_file_and_stops_on_ctrl_c(tiny_gguf: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "kt",
        "serve",
        str(tiny_gguf),
        "--backend",
        "llama-cpp",
        "--json",
        "--log",
        str(tmp_path / "l"),
    ]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=hear_interrupts
    )
    try:
        assert program.stdout is not None
        said = ""
        while not said.rstrip().endswith("}") and (line := program.stdout.readline()):
            said += line
        told = json.loads(said)
        key = Path(told["key"])
        assert oct(key.stat().st_mode & 0o777) == "0o600"
        assert get(told["base_url"] + "/models", key.read_text())[0] == 200
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=30) == 130
    finally:
        program.kill()
    assert not key.exists()
