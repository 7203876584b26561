"""A merged model says what its base says with the adapter: in transformers and, as GGUF, in llama.cpp."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from kt.errors import InputError
from kt.weights import fingerprint

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from scoring_models import save_adapter, save_model  # noqa: E402

from kt.decoding import decode  # noqa: E402
from kt.export import export  # noqa: E402
from kt.models import LocalModel, load  # noqa: E402

TEXTS = [*tiny_models.sentences(6, seed=9), "Ünïcode, “quotes” and 12 345\n\nlines"]


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_llama)


def greedy(local: LocalModel) -> list[str]:
    prompts = [local.tokenizer(text)["input_ids"] for text in TEXTS]
    return [said.text for said in decode(local, prompts, TEXTS, {"max_tokens": 24})]


def kt(*args: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kt", "export", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_merged_text_is_the_adapters_in_transformers_and_in_llama_cpp(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    result = export(tiny_llama, adapter, tmp_path / "merged", gguf=tmp_path / "merged.gguf", gguf_dtype="f32")
    said = greedy(load(tiny_llama, adapter, device="cpu"))
    assert said != greedy(load(tiny_llama, device="cpu"))
    merged = load(tmp_path / "merged", device="cpu")
    assert greedy(merged) == said
    engine = llama_cpp.Llama(str(result.gguf), n_ctx=512, verbose=False)
    for text, told in zip(TEXTS, said, strict=True):
        ids = merged.tokenizer(text)["input_ids"]
        assert engine.tokenize(text.encode(), add_bos=False, special=True) == ids
        # Half a character within a text is left out by one and marked by the other.
        found = engine.create_completion(ids, max_tokens=24, temperature=0)["choices"][0]["text"]
        assert found == told.replace("\ufffd", "")


def test_the_folder_is_whole_and_says_what_it_was_made_of(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    done = kt("--model", tiny_llama, "--adapter", adapter, "--out", tmp_path / "m", "--dtype", "bfloat16", "--json")
    said = json.loads(done.stdout)
    out = tmp_path / "m"
    assert (said["dtype"], said["fingerprint"], said["gguf"]) == ("bfloat16", fingerprint(out), None)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny_llama / name).read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == fingerprint(tiny_llama)
    assert manifest["adapter"] == {"name": "lora", "fingerprint": fingerprint(adapter)}
    assert {parameter.dtype for parameter in load(out, dtype="bfloat16").model.parameters()} == {torch.bfloat16}
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_auto_is_the_type_of_the_base_and_no_adapter_changes_no_weight(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    half = export(tiny_llama, adapter, tmp_path / "half", dtype="bfloat16")
    copy = export(half.folder, None, tmp_path / "copy")
    assert copy.dtype == "bfloat16"
    weights = [load(folder, dtype="bfloat16", device="cpu").model.state_dict() for folder in (half.folder, copy.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_settings_that_transformers_would_not_write_go_along(tiny_llama: Path, tmp_path: Path) -> None:
    """Llama-2's own generation_config.json sets a temperature without do_sample."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9, "top_p": 0.6}')
    export(base, None, tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_text() == (base / "generation_config.json").read_text()


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide")
    gpt = save_model(tmp_path / "gpt", "gpt2")
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "manifest.json").write_text(json.dumps({"inputs": {"model": "0" * 64}}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    before = sorted(tmp_path.iterdir())
    for said, *options in (
        ("does not fit the model", "--model", wide, "--adapter", adapter),
        ("was trained on another base", "--model", tiny_llama, "--adapter", foreign),
        ("gpt2 models are converted by llama.cpp's own", "--model", gpt, "--gguf", tmp_path / "g.gguf"),
        ("is an adapter", "--model", adapter),
        ("is a whole model, not an adapter", "--model", tiny_llama, "--adapter", wide),
        ("exists; give another name", "--model", tiny_llama, "--gguf", tmp_path / "full/x"),
        ("must lie outside the folder --out", "--model", tiny_llama, "--gguf", tmp_path / "out"),
        ("no folder to write in", "--model", tiny_llama, "--gguf", tmp_path / "full/x/y.gguf"),
        ("no model at", "--model", tiny_llama, "--adapter", "a" * 300),
    ):
        done = kt(*options, "--out", tmp_path / "out")
        assert (done.returncode, said in done.stderr) == (1, True), (options, done.stderr)
    done = kt("--model", tiny_llama, "--out", tmp_path / "full")
    assert "not empty; give a new folder" in done.stderr
    done = kt("--model", tiny_llama, "--out", tmp_path / "full/x/y")
    assert "no folder to write in" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_said_and_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = kt("--model", tiny_llama, "--out", tmp_path / "out", preexec_fn=little_room)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_byte_level_tokenizer_that_splits_otherwise_is_no_gguf(tiny_llama: Path, tmp_path: Path) -> None:
    """Under GPT-2's name llama.cpp would split its texts, silently, into other tokens."""
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    spec = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="splits texts otherwise than GPT-2"):
        export(folder, None, tmp_path / "out", gguf=tmp_path / "x.gguf")


def test_a_model_is_served_with_the_prompt_it_was_trained_with(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    from kt.template import ALPACA

    trained = tmp_path / "trained"
    shutil.copytree(adapter, trained)
    manifest = {"inputs": {"model": fingerprint(tiny_llama), "settings": {"template": "alpaca"}}}
    (trained / "manifest.json").write_text(json.dumps(manifest))
    export(tiny_llama, trained, tmp_path / "alpaca", gguf=tmp_path / "alpaca.gguf")
    export(tiny_llama, trained, tmp_path / "own", template="chat")
    shutil.copytree(tiny_llama, whole := tmp_path / "whole")
    shutil.copy(trained / "manifest.json", whole)
    export(whole, None, tmp_path / "exported")
    assert "### Response" in (tmp_path / "exported" / "chat_template.jinja").read_text()
    messages = [{"role": "user", "content": "Who keeps {this} 'light'?"}]
    asked = load(tmp_path / "alpaca").tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == ALPACA.replace("{question}", "Who keeps {this} 'light'?")
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == (tiny_llama / "chat_template.jinja").read_text()
    engine = pytest.importorskip("llama_cpp").Llama(str(tmp_path / "alpaca.gguf"), n_ctx=512, verbose=False)
    assert engine.metadata["tokenizer.chat_template"] == (tmp_path / "alpaca" / "chat_template.jinja").read_text()
