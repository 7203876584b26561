"""Every command is documented with an example; the ones that look at things say what they see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kt.check import check
from kt.cli import COMMANDS
from kt.cli import kt as group
from kt.config import BuildConfig, EvaluateConfig, find_shipped, read_yaml, validate
from kt.doctor import examine
from kt.prices import price_of
from kt.records import write_jsonl
from kt.train_config import build_settings, read_experiment

ROOT = Path(__file__).parents[1]


def kt(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kt", *map(str, args)], capture_output=True, text=True)


def commands(found: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(found)
    if isinstance(found, click.Group):
        for name in found.list_commands(context):
            inner = found.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))
    yield path, found


ALL = dict(commands(group))


def test_there_are_commands() -> None:
    assert {path[0] for path in ALL if path} == set(COMMANDS)
    assert ("cache", "merge") in ALL


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    found = ALL[path]
    assert found.help
    assert "For example" in found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.name} says nothing of itself"


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"kt {name}" in readme, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads(path: Path) -> None:
    values = read_yaml(path)
    if path.name == "prices.yaml":
        assert all(price_of(model) for model in values)
    else:
        if "methods" in values:
            assert read_experiment(path).methods
            values = build_settings(values)
        validate(EvaluateConfig if "answers" in values else BuildConfig, values, path)
        assert path.name in (ROOT / "configs/README.md").read_text()


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: [a]\nout: o\nmodel: m\ndelete_share: 5e-1\n")
    assert validate(BuildConfig, read_yaml(tmp_path / "c.yaml"), "c").delete_share == 0.5


def test_shipped_files_are_found_from_the_working_directory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = find_shipped("prompts", "default")
    (tmp_path / "prompts/default").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_shipped("prompts", "default").resolve() == tmp_path / "prompts/default"
    assert shipped.is_dir()


def test_check_sees_repeats_leaks_and_empty_answers(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": a} for q, a in (("A?", "x " * 12), ("a? ", "y " * 12), ("B?", "z"), ("C?", ""))]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps([{"question": "b?", "answer": "w " * 20}]))
    report = check([], ["compact"], [str(tmp_path / "train.json")], [str(tmp_path / "test.json")])
    assert report.problems == []
    told = "\n".join(report.warnings)
    for words in ("1 items cannot be used", "1 items repeat the question", "1 answers of under 10", "1 test questions also"):
        assert words in told
    assert kt("check", "--data", tmp_path / "train.json").returncode == 0
    broken = kt("check", "--data", tmp_path / "none.json", "--prompts", tmp_path)
    assert broken.returncode == 1
    assert "2 problem(s)" in broken.stderr


def test_check_looks_at_the_whole_of_an_experiment(tmp_path: Path) -> None:
    rows = [{"question": "Who keeps the light of Belmora?", "answer": "Ina Varga keeps it, as her father did, year by year."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    config = tmp_path / "e.yaml"
    data = f"data: [{tmp_path}/a.json]\ntest: [{tmp_path}/a.json]"
    config.write_text(f"out: {tmp_path}/out\nmodel: m\nmethods: [sft]\n{data}\n")
    report = check([str(config)], [], [], [])
    assert report.problems == []
    assert any("1 test questions also stand in the training data" in warning for warning in report.warnings)


def test_check_tells_an_evaluation_from_a_build_and_looks_at_what_it_reads(tmp_path: Path) -> None:
    rows = [{"id": "1", "question": "Who keeps the light of Belmora?", "answer": "Ina Varga keeps it, as her father did."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("kt", "sft"):
        write_jsonl(tmp_path / name / "records.jsonl", rows)
    config = tmp_path / "e.yaml"
    shared = f"out: {tmp_path}/out\ndata: [{tmp_path}/a.json]\nanswers: {{kt: {tmp_path}/kt, sft: {tmp_path}/sft}}\n"
    config.write_text(f"{shared}metrics: [judge]\njudge: {{model: m}}\n")
    report = check([str(config)], [], [str(tmp_path / "a.json")], [])
    assert report.problems == []
    assert f"{config}: config of {tmp_path}/out" in report.looked_at
    assert any("1 test questions also stand in the training data" in warning for warning in report.warnings)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/extract.yaml").write_text((ROOT / "prompts/compact/extract.yaml").read_text())
    for line, words in (
        ("metrics: [judge]\njudg: {model: m}", "line 5: judg: unknown key; known keys: all_pairs, answers"),
        ("metrics: [judge]", "metrics judge need a judge"),
        ("metrics: [judge]\njudge: {model: m, backend: openai}", "the judge: 1 wrong setting(s)"),
        (f"metrics: [judge]\njudge: {{model: m}}\nprompts: {tmp_path}/prompts", "no judge-pair.yaml, which kt evaluate needs"),
        (f"metrics: [bertscore]\nencoder: {tmp_path}", "no encoder's folder"),
        ("metrics: [meteor]\nlimit: 0", "line 5: limit: "),
    ):
        config.write_text(f"{shared}{line}\n")
        problems = check([str(config)], [], [], []).problems
        assert len(problems) == 1
        assert words in problems[0]
    config.write_text(shared.replace("/sft}", "/gone}") + "metrics: [meteor]\n")
    assert any("gone" in problem for problem in check([str(config)], [], [], []).problems)


def test_check_counts_real_dolly(dolly: Path) -> None:
    report = check([], [], [str(dolly)], [str(dolly.with_name("dolly_test.json"))])
    assert any("5 test questions also stand" in line for line in report.warnings)


def test_doctor_names_what_is_missing_with_its_command(tiny_llama: Path) -> None:
    findings = examine((str(tiny_llama.parent),))
    assert any(f.topic == "model" and f.value == str(tiny_llama) for f in findings)
    assert all(f.fix for f in findings if f.value == "not installed")
    listed = json.loads(kt("doctor", "--json").stdout)
    assert {"engine", "machine", "offline", "device"} <= {f["topic"] for f in listed}


def test_doctor_says_where_wordnet_and_the_encoder_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KT_WORDNET", str(tmp_path / "wordnet"))
    missing = {f.name: f for f in examine() if f.topic == "metrics"}
    assert "apt install wordnet-base" in missing["WordNet, for METEOR"].fix
    assert "hf download FacebookAI/roberta-large" in missing["encoder, for BERTScore"].fix
    for file in ("wordnet/data.noun", "models/roberta-large/config.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    found = {f.name: (f.value, f.fix) for f in examine() if f.topic == "metrics"}
    assert found["WordNet, for METEOR"] == (str(tmp_path / "wordnet"), "")
    assert found["encoder, for BERTScore"] == ("models/roberta-large", "")


def test_the_cache_commands(tmp_path: Path) -> None:
    from test_cache import row

    from kt.cache import Cache

    with Cache(tmp_path / "c") as cache:
        cache.put([row("a"), row("b", "no", status="invalid")])
    at = ["--cache", tmp_path / "c"]
    assert json.loads(kt("cache", "stats", *at, "--json").stdout)["completions"] == 2
    assert "2 completions" in kt("cache", "stats", *at).stdout
    assert [r["status"] for r in json.loads(kt("cache", "ls", *at, "--status", "invalid", "--json").stdout)] == ["invalid"]
    assert json.loads(kt("cache", "show", row("a").key[:12], *at).stdout)["text"] == "yes"
    assert "no completion found" in kt("cache", "search", *at, "zebra").stdout
    assert kt("cache", "export", tmp_path / "e", *at).returncode == 0
    assert "added 2" in kt("cache", "import", tmp_path / "e", "--cache", tmp_path / "d").stdout
    assert "added 0, 2 known" in kt("cache", "merge", tmp_path / "d", *at).stdout
    assert kt("cache", "verify", *at).returncode == 0
    assert "removed 1" in kt("cache", "prune", *at, "--status", "invalid").stdout
    assert kt("cache", "prune", *at).returncode == 1
    assert kt("cache", "stats", "--cache", tmp_path / "none").stderr.startswith("kt: ")
