"""A model's fingerprint follows its contents, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from kt import weights
from kt.errors import InputError
from kt.weights import combined_fingerprint, fingerprint


@pytest.fixture(autouse=True)
def memo(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "kt" / "fingerprints.json"


def make_model(folder, weights_bytes=b"weights"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(weights_bytes)
    return folder


def make_adapter(folder, base="/here/base"):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"lora")
    return folder


def test_a_copy_elsewhere_is_the_same_model(tmp_path):
    one = make_model(tmp_path / "one")
    shutil.copytree(one, tmp_path / "deep" / "two")
    assert fingerprint(one) == fingerprint(tmp_path / "deep" / "two") == fingerprint(str(one) + "/")
    assert len(fingerprint(one)) == 64


def test_a_link_to_a_model_is_the_same_model(tmp_path):
    one = make_model(tmp_path / "one")
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "hub").mkdir()
    for file in one.iterdir():
        (tmp_path / "hub" / file.name).symlink_to(file)  # as the hub's snapshot folders are laid out
    assert fingerprint(tmp_path / "link") == fingerprint(tmp_path / "hub") == fingerprint(one)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_every_file_counts_by_name_and_content(tmp_path, name):
    model = make_model(tmp_path / "model")
    before = fingerprint(model)
    content = (model / name).read_bytes()
    (model / name).write_bytes(content.replace(b"e", b"a"))
    assert fingerprint(model) != before
    (model / name).write_bytes(content)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "name",
    ["model-00002-of-00002.safetensors", "generation_config.json", "merges.txt", "tokenizer_config.json"],
)
def test_a_file_more_is_another_model(tmp_path, name):
    model = make_model(tmp_path / "model")
    before = fingerprint(model)
    (model / name).write_text("{}")
    assert fingerprint(model) != before


def test_swapped_shards_are_another_model(tmp_path):
    model = make_model(tmp_path / "model")
    (model / "a.safetensors").write_bytes(b"1")
    (model / "b.safetensors").write_bytes(b"2")
    before = fingerprint(model)
    (model / "a.safetensors").write_bytes(b"2")
    (model / "b.safetensors").write_bytes(b"1")
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["README.md", "trainer_state.json", "optimizer.pt", "training_args.bin", "x.log"])
def test_what_no_engine_reads_does_not_count(tmp_path, name):
    model = make_model(tmp_path / "model")
    before = fingerprint(model)
    (model / name).write_text("anything")
    (model / "checkpoint-5").mkdir(exist_ok=True)
    (model / "checkpoint-5" / "model.safetensors").write_text("other")
    assert fingerprint(model) == before


def test_an_adapter_is_itself_wherever_its_base_lies(tmp_path):
    one = make_adapter(tmp_path / "one", base="/here/base")
    two = make_adapter(tmp_path / "two", base="/there/base")
    assert fingerprint(one) == fingerprint(two)
    (two / "adapter_model.safetensors").write_bytes(b"more")
    assert fingerprint(one) != fingerprint(two)


def test_combined_is_the_pair(tmp_path):
    model, other = make_model(tmp_path / "model"), make_model(tmp_path / "other", b"other")
    adapter = make_adapter(tmp_path / "adapter")
    assert combined_fingerprint(model) == combined_fingerprint(model, None) == fingerprint(model)
    pairs = {combined_fingerprint(model, adapter), combined_fingerprint(other, adapter)}
    assert len(pairs | {fingerprint(model), fingerprint(other), fingerprint(adapter)}) == 5


def test_a_gguf_file_is_its_content(tmp_path):
    one = tmp_path / "one.gguf"
    one.write_bytes(b"GGUF" + b"\0" * 100)
    shutil.copy(one, tmp_path / "two.gguf")
    assert fingerprint(one) == fingerprint(tmp_path / "two.gguf")
    one.write_bytes(b"GGUF" + b"\1" * 100)
    assert fingerprint(one) != fingerprint(tmp_path / "two.gguf")


def test_what_is_no_model_is_a_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    (tmp_path / "text.gguf").write_text("hello")
    broken = make_model(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    for name, message in {
        "missing": "no such folder or GGUF file",
        "empty": "neither config.json nor adapter_config.json",
        "config": "no weights: expected",
        "text.gguf": "not a model",
        "broken": "config.json is not JSON",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            fingerprint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def large_model(folder, age_s):
    model = make_model(folder, os.urandom(weights.MEMO_BYTES))
    old = time.time() - age_s
    os.utime(model / "model.safetensors", (old, old))
    return model


def count_reads(monkeypatch):
    read = []
    stream = weights._stream_digest
    monkeypatch.setattr(weights, "_stream_digest", lambda file: read.append(file.name) or stream(file))
    return read


def test_large_files_are_read_once(tmp_path, monkeypatch, memo):
    model = large_model(tmp_path / "model", age_s=60)
    first = fingerprint(model)
    assert len(json.loads(memo.read_text())) == 1
    read = count_reads(monkeypatch)
    assert fingerprint(model) == first
    assert "model.safetensors" not in read
    (model / "model.safetensors").write_bytes(os.urandom(weights.MEMO_BYTES))  # same size, new time
    assert fingerprint(model) != first
    assert "model.safetensors" in read


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path, memo):
    fingerprint(large_model(tmp_path / "model", age_s=0))
    assert not memo.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_memo_is_harmless(tmp_path, memo, content):
    model = large_model(tmp_path / "model", age_s=60)
    expected = fingerprint(model)
    memo.write_bytes(content)
    assert fingerprint(model) == expected
    assert len(json.loads(memo.read_text())) == 1


def test_a_memo_that_cannot_be_written_is_harmless(tmp_path, monkeypatch):
    model = large_model(tmp_path / "model", age_s=60)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder below a file: refused even to root
    assert len(fingerprint(model)) == 64


def test_importing_it_loads_no_torch():
    code = "import kt.weights, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
