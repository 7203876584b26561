"""`kt export`: a base model with an adapter merged into it, as one folder that any engine serves, and as GGUF."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt import __version__
from kt.backends import model_name
from kt.errors import EngineError, InputError, OutputError
from kt.gguf import check_convertible, write_gguf
from kt.models import DTYPES, is_out_of_memory, load, load_tokenizer
from kt.records import output_error, write_json
from kt.template import alpaca_chat_template
from kt.weights import TOKENIZER, check_base, fingerprint, trained_template

KEPT = (*TOKENIZER, "generation_config.json")
"""Files of the base that go along as they are: saved anew, a tokenizer may come out differently."""


@dataclass(frozen=True)
class ExportResult:
    """What was written: the folder, the GGUF file if asked for, the weights' type and fingerprint."""

    folder: Path
    gguf: Path | None
    dtype: str
    fingerprint: str


def export(
    model: str | Path,
    adapter: str | Path | None,
    out: str | Path,
    *,
    gguf: str | Path | None = None,
    dtype: str = "auto",
    gguf_dtype: str = "f16",
    template: str = "auto",
) -> ExportResult:
    """Write the merged model to the folder `out`, which must be empty or new, and as GGUF if asked for.

    Merged in float32 and written in `dtype`; `auto` is that of the base. The tokenizer is the base's, byte for byte.
    `template` is what a server shall put around a question: `chat`, the base's own, or `alpaca`; `auto` is what `kt train`
    trained the adapter with, else the base's. `out` appears whole or not at all. Raises InputError for an adapter of
    another base, a model that no GGUF can be made of, and places that are taken, before anything is loaded.
    """
    model, out = Path(model), Path(out)
    _check_places(out, Path(gguf) if gguf else None)
    if gguf is not None:
        check_convertible(model, gguf_dtype)
    if adapter is not None:
        check_base(model, adapter)
    with _draft(out) as draft:
        saved = _merge(model, adapter, draft, dtype)
        if template == "alpaca" or (template == "auto" and trained_template(adapter or model) == "alpaca"):
            _write_alpaca(draft)
        print_of = _describe(draft, model, adapter, saved)
        if gguf is not None:
            with _draft(Path(gguf)) as file:
                write_gguf(draft, file, gguf_dtype, name=out.name)
    return ExportResult(out, Path(gguf) if gguf else None, saved, print_of)


def _check_places(out: Path, gguf: Path | None) -> None:
    if os.path.isfile(out) or (os.path.isdir(out) and any(out.iterdir())):
        raise InputError(f"--out {out}: not empty; give a new folder, or remove what is there")
    if gguf is not None and os.path.lexists(gguf):
        raise InputError(f"--gguf {gguf}: exists; give another name, or remove it")
    if gguf is not None and out.resolve() in (gguf.resolve(), *gguf.resolve().parents):
        raise InputError(f"--gguf {gguf}: must lie outside the folder --out {out}")
    for option, target in (("--out", out), *((("--gguf", gguf),) if gguf else ())):
        above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise OutputError(f"{option} {target}: cannot be written: {above} is no folder to write in")


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Give a path beside the target that takes the target's name if the block ends well, and is removed if not."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if target.is_dir():
            target.rmdir()
        draft.replace(target)
    except OSError as error:
        raise output_error(target, error) from error
    except SafetensorError as error:  # its own name for a full disk
        raise OutputError(f"{target}: cannot be written: {error}; free some space, or choose another --out") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):  # said above, if it matters
            draft.unlink()


def _merge(model: Path, adapter: str | Path | None, target: Path, dtype: str) -> str:
    """Write the merged weights, config and the base's tokenizer files; return the weights' type."""
    local = load(model, adapter, dtype="float32", device="cpu")
    import torch
    from transformers import GenerationConfig

    name = _dtype_of(model) if dtype == "auto" else dtype
    merged: Any = local.model
    try:
        if adapter is not None:
            merged = merged.merge_and_unload(safe_merge=True)
        if (model / "generation_config.json").exists():  # copied below; transformers refuses to write some that it reads
            merged.generation_config = GenerationConfig()
        merged.to(getattr(torch, name)).save_pretrained(target)
    except ValueError as error:
        raise InputError(f"adapter {adapter} cannot be merged: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError(f"not enough memory to merge {model}: it takes 4 bytes a weight; use a larger machine") from error
    for file in (found for pattern in KEPT for found in model.glob(pattern)):
        place = target / file.relative_to(model)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    for weights in target.glob("*.safetensors"):  # safetensors makes them readable by their owner alone
        weights.chmod((target / "config.json").stat().st_mode)
    return name


def _write_alpaca(folder: Path) -> None:
    """Make the Alpaca prompt the folder's chat template, in both places where engines look."""
    (folder / "chat_template.jinja").write_text(alpaca_chat_template(load_tokenizer(folder)))
    path = folder / "tokenizer_config.json"
    if path.exists():
        settings = json.loads(path.read_bytes())
        if settings.pop("chat_template", None) is not None:
            write_json(path, settings)


def _dtype_of(model: Path) -> str:
    """Return the type that a folder's config says its weights are stored in."""
    config = json.loads((model / "config.json").read_bytes())
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return name if name in DTYPES else "float32"


def _describe(folder: Path, model: Path, adapter: str | Path | None, dtype: str) -> str:
    """Write manifest.json, last: what the weights were made of, and their own fingerprint, which is returned."""
    own = fingerprint(folder)
    parts = {"model": {"name": model_name(str(model)), "fingerprint": fingerprint(model)}}
    if adapter is not None:
        parts["adapter"] = {"name": model_name(str(adapter)), "fingerprint": fingerprint(adapter)}
    write_json(folder / "manifest.json", {"kind": "export", "kt": __version__, **parts, "dtype": dtype, "fingerprint": own})
    return own
