"""The identity of a model's weights: a SHA-256 over what can change an answer, wherever the files lie."""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from kt.errors import InputError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json", "adapter_model.bin")
CONFIG = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER = (
    "tokenizer*.json",
    "*tokenizer.model",
    "*.model.v*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
# Keys of config files that say where a model lay when it was saved; a moved model is the same model.
LOCATIONS = ("base_model_name_or_path", "_name_or_path", "name_or_path")
BLOCK = 1 << 20
# Smaller files are read every time, so that an edited config is never taken for its former self.
MEMO_BYTES = 1 << 20
# A file written a moment ago may change again without a new time stamp.
MEMO_AGE_S = 2.0
MEMO_ENTRIES = 4096


def fingerprint(path: str | Path) -> str:
    """Identify a model folder, an adapter folder or a GGUF file by names and contents: hex SHA-256.

    The folder's place, its own name and files that no engine reads (optimizer states, logs) do not count.
    Raises InputError where there is no model.
    """
    path = Path(path)
    if path.is_file():
        return _gguf_fingerprint(path)
    digest = hashlib.sha256(b"kt model folder 1\n")
    for name, file in _model_files(path):
        digest.update(f"{name}\0{_file_digest(file)}\n".encode())
    return digest.hexdigest()


def combined_fingerprint(model: str | Path, adapter: str | Path | None = None) -> str:
    """Identify a model together with the adapter on it; without one, the model's own fingerprint."""
    base = fingerprint(model)
    if adapter is None:
        return base
    return hashlib.sha256(f"kt adapter on model 1\n{base}\n{fingerprint(adapter)}\n".encode()).hexdigest()


def check_base(model: str | Path, adapter: str | Path) -> None:
    """Refuse an adapter that `kt train` made on another base: its tensors may fit by chance, as a chat model's do."""
    try:
        manifest = json.loads((Path(adapter) / "manifest.json").read_bytes())
        trained_on = manifest["inputs"]["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # made elsewhere: only its tensors can tell
    if trained_on not in (None, base := fingerprint(model)):
        raise InputError(
            f"adapter {adapter} was trained on another base (weights {str(trained_on)[:16]}) than {model} ({base[:16]}):"
            " give --model the one it was trained on"
        )


def trained_template(folder: str | Path) -> str | None:
    """Return the prompt template of the training that made an adapter or a model, or None if `kt train` did not."""
    try:
        found = json.loads((Path(folder) / "manifest.json").read_bytes())["inputs"]["settings"]["template"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(found)


def _gguf_fingerprint(path: Path) -> str:
    with _open(path) as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a model: expected a GGUF file or a folder with config.json and weights")
    return hashlib.sha256(f"kt gguf 1\n{_file_digest(path)}\n".encode()).hexdigest()


def _model_files(folder: Path) -> list[tuple[str, Path]]:
    if not os.path.isdir(folder):  # unlike Path.is_dir, false for a name that is too long
        raise InputError(f"no model at {folder}: no such folder or GGUF file")
    weights = _matching(folder, WEIGHTS)
    files = {**weights, **_matching(folder, CONFIG + TOKENIZER)}
    if not {"config.json", "adapter_config.json"} & files.keys():
        raise InputError(f"{folder} is not a model: it has neither config.json nor adapter_config.json")
    if not weights:
        raise InputError(f"{folder} has no weights: expected *.safetensors; is its download or training complete?")
    return sorted(files.items())


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = (file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in found}


def _file_digest(file: Path) -> str:
    if file.name in CONFIG:
        return _config_digest(file)
    stat = file.stat()
    if stat.st_size < MEMO_BYTES:
        return _stream_digest(file)
    # Keyed by what a copy, a rewrite or a replaced link would change.
    key = f"{os.path.realpath(file)}|{stat.st_size}|{stat.st_mtime_ns}"
    memo = _read_memo()
    if key in memo:
        return memo[key]
    digest = _stream_digest(file)
    if time.time() - stat.st_mtime > MEMO_AGE_S:
        _write_memo({**memo, key: digest})
    return digest


def _config_digest(file: Path) -> str:
    with _open(file) as stream:
        content = stream.read()
    try:
        config = json.loads(content)
    except ValueError:
        raise InputError(f"{file} is not JSON: the model folder is damaged, copy or save it again") from None
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in LOCATIONS}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _stream_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with _open(file) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _open(file: Path) -> Any:
    try:
        return open(file, "rb")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def _memo_path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kt" / "fingerprints.json"


def _read_memo() -> dict[str, str]:
    try:
        memo = json.loads(_memo_path().read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(memo: dict[str, str]) -> None:
    kept = dict(list(memo.items())[-MEMO_ENTRIES:])
    # Only time is lost without it: no home, a full disk or a read-only one is no error here.
    with contextlib.suppress(OSError, RuntimeError):
        path = _memo_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(kept, file, indent=0)
        os.replace(file.name, path)
