"""Configs say what is wrong where; nothing unknown or mistyped passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kt.config import BuildConfig, find_shipped, read_yaml, validate
from kt.errors import ConfigError

NEEDED = "data: [qa.json]\nout: runs/x\nmodel: m\n"


def load(folder: Path, text: str) -> BuildConfig:
    path = folder / "c.yaml"
    path.write_text(text)
    return validate(BuildConfig, read_yaml(path), path)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("timeout: 5e-7", "timeout", 5e-7),
        ("timeout: 1e2", "timeout", 100.0),
        ("max_cost: 0", "max_cost", 0.0),
        ("revision: off", "revision", "off"),  # YAML 1.1 would read False
        ("limit: null", "limit", None),
    ],
)
def test_yaml_says_what_it_looks_like(line: str, key: str, value: Any, tmp_path: Path) -> None:
    found = getattr(load(tmp_path, NEEDED + line), key)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("workrs: 3", "line 4: workrs: unknown key; known keys: .*workers"),
        ("difficulty:\n  mode: ppl\n  shar: 0.5", "line 6: difficulty.shar: unknown key; known keys: .*share"),
        ("difficulty: {share: 0}", "difficulty.share: .*greater than 0"),
        ("difficulty: hard", "line 4: difficulty: "),
        ("workers: 0", "line 4: workers: .*greater than 0"),
        ("workers: many", r"line 4: workers: .*integer.*\(given: 'many'\)"),
        ("backend: gpt", "line 4: backend: .*'vllm', 'llama-cpp', 'openai' or 'replay'"),
        ("aspects: [truth]", "aspects.0: "),
        ("data: []\nseed: 1", "not YAML"),  # a key given twice
        ("offline: true\nfallback: {}", "offline and fallback exclude each other"),
        ("backend: openai", "openai needs base_url"),
        ("fallback: {model: m}", "bear the same name, m"),
        ("fallback: {modell: big}", "fallback.modell: unknown key; known keys: .*base_url"),
        ("seed: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(lines: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path, NEEDED + lines)
    assert "c.yaml" in str(caught.value)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 wrong setting\(s\)") as caught:
        load(tmp_path, NEEDED + "workrs: 3\nseed: x\nlimit: -1\n")
    assert [word in str(caught.value) for word in ("line 4: workrs", "line 5: seed", "line 6: limit")] == [True] * 3


def test_files_that_are_no_config(tmp_path: Path) -> None:
    for text in ("", "- a\n- b\n", "words"):
        with pytest.raises(ConfigError, match="expected keys and values"):
            load(tmp_path, text)
    (tmp_path / "c.yaml").write_bytes(b"out: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="looked at"):
        find_shipped("configs", "no-such.yaml")


def test_a_config_nested_out_of_reason_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("data: " + "[" * 5000)
    with pytest.raises(ConfigError, match="nested hundreds deep"):
        read_yaml(path)
