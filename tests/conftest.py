"""Real models and real engines for the tests, made and started once a run and shared by its workers."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

DOLLY = Path(__file__).parents[2] / "shared/data/dolly_train.json"


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test, saying why, where an optional package is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def hear_interrupts() -> None:
    """For `preexec_fn`: a test run started in the background ignores Ctrl-C, and so would every program it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama folder."""
    pytest.importorskip("transformers")
    return tiny_models.make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Llama as a GGUF file."""
    pytest.importorskip("gguf")
    from kt.gguf import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama, path)
    return path


@pytest.fixture
def dolly() -> Path:
    """The real Dolly questions, where they are."""
    if not DOLLY.exists():
        pytest.skip(f"{DOLLY} is not here: real Dolly data are tested only where they lie beside the checkout")
    return DOLLY


@pytest.fixture(scope="session")
def llama_server(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A real llama.cpp server."""
    pytest.importorskip("llama_cpp")
    from kt.serving import serve

    with serve("llama-cpp", tiny_gguf, log_path=tmp_path_factory.mktemp("llama") / "engine.log") as server:
        yield server


@pytest.fixture(scope="session")
def vllm_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A real vLLM server; tests that use it are in the xdist group `vllm`, so that one worker starts one."""
    pytest.importorskip("vllm")
    from kt.serving import serve

    with serve("vllm", tiny_llama, max_model_len=4096, log_path=tmp_path_factory.mktemp("vllm") / "engine.log") as server:
        yield server


@pytest.fixture
def chromium() -> Iterator[object]:
    """A real headless Chromium that can reach no other machine.

    One a test: while playwright runs, this thread has a running event loop, in which nobody else can start one.
    """
    import chromium as browsers

    with browsers.running() as browser:
        yield browser
