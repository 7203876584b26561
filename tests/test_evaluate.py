"""Whole evaluations through the command line: twice the same bytes, the same numbers everywhere, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from conftest import DOLLY, needs
from scripted_server import Running, scripted_server
from test_metrics import make_encoder, make_wordnet

from kt.cli.evaluate import evaluate as command
from kt.cli.evaluate import read_settings, table
from kt.config import EvaluateConfig
from kt.errors import ConfigError
from kt.evaluate import comparisons
from kt.items import read_items
from kt.records import file_hash, read_jsonl, write_jsonl

pytest.importorskip("scipy")
pytest.importorskip("nltk")


def kt(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Evaluate as a user does; a traceback is a bug whatever happens."""
    command = [sys.executable, "-m", "kt", "evaluate", "--prompts", "compact", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def study(folder: Path, count: int = 8) -> list[object]:
    """Write test items and the answers of two methods; return the options that name them."""
    gold = [f"Town {i} is old. Town {i} makes wool. Town {i} is rich." for i in range(count)]
    rows = [{"id": f"q{i}", "instruction": f"What of town {i}?", "input": "", "output": gold[i]} for i in range(count)]
    (folder / "test.json").write_text(json.dumps([*rows, {"id": "none", "instruction": "What?", "output": ""}]))
    answers = {
        "kt": [f"Town {i} is old. Town {i} makes wool." for i in range(count)],
        "sft": [f"Town {i} is <b>new</b>." if i else "" for i in range(count)],
    }
    for name, texts in answers.items():
        write_jsonl(
            folder / name / "records.jsonl",
            [{"id": f"q{i}", "question": f"What of town {i}?", "answer": text} for i, text in enumerate(texts)],
        )
    return ["--answers", f"kt={folder / 'kt'}", "--answers", f"sft={folder / 'sft'}", "--data", folder / "test.json"]


def at(server: Running) -> list[str]:
    return ["--backend", "openai", "--base-url", server.url, "--judge", "m"]


PARTS = ["--metrics", "meteor-no-wordnet,judge,score,facts"]


def tree(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_twice_and_replayed_is_the_same_bytes(tmp_path: Path) -> None:
    common = [*study(tmp_path), *PARTS, "--cache", tmp_path / "c.sqlite"]
    with scripted_server(tmp_path) as server:
        first = kt(*common, *at(server), "--out", tmp_path / "a")
        assert first.returncode == 0, first.stderr
        sent = len(server.received())
        again = kt(*common, *at(server), "--out", tmp_path / "b", "--workers", 1)
        assert "; 0 calls sent" in again.stdout
        assert len(server.received()) == sent
    replay = kt(*common, "--backend", "replay", "--judge", "m", "--out", tmp_path / "r")
    assert replay.returncode == 0, replay.stderr
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "r")
    assert kt(*common, "--backend", "replay", "--judge", "m", "--seed", 1, "--out", tmp_path / "r").returncode == 0
    assert tree(tmp_path / "a").keys() == tree(tmp_path / "r").keys()


def test_every_number_is_the_one_that_the_records_give(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        done = kt(*study(tmp_path), *PARTS, *at(server), "--cache", tmp_path / "c.sqlite", "--out", tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert json.loads(done.stdout) == results
    assert results["items"] == {"read": 9, "used": 8, "rejected": 1}
    assert list(results["methods"]) == ["kt", "sft"]
    ours, theirs = results["methods"]["kt"], results["methods"]["sft"]
    assert (ours["words"]["mean"], ours["empty"], theirs["empty"]) == (8, 0, 1)
    rows = list(read_jsonl(tmp_path / "a/metrics/records.jsonl"))
    own = [row["meteor-no-wordnet"] for row in rows if row["name"] == "kt"]
    assert ours["metrics"]["meteor-no-wordnet"]["mean"] == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert (ours["facts"]["correct"], ours["facts"]["incorrect"]) == (16, 0)
    assert (theirs["facts"]["correct"], theirs["facts"]["incorrect"], theirs["facts"]["without_facts"]) == (0, 7, 1)
    assert ours["scores"]["factuality"]["mean"] == 8
    assert theirs["scores"]["factuality"]["mean"] == (7 * 4 + 1) / 8
    [judged] = results["judges"]
    assert [row["criterion"] for row in judged["comparisons"]] == ["completeness", "factuality", "logicality"]
    assert all(row["win"]["count"] == 8 and row["judged"] == 7 for row in judged["comparisons"])
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert all(file_hash(tmp_path / "a" / name) == digest for name, digest in manifest["outputs"].items())
    assert "results.json" in manifest["outputs"]
    assert str(tmp_path) not in (tmp_path / "a/manifest.json").read_text() + (tmp_path / "a/results.json").read_text()
    lines = list(table(results))
    assert lines[2] == "kt against sft, completeness (m): 8 win, 0 tie, 0 lose; position bias 0.000"
    assert "facts: 16 correct, 0 incorrect, share 1.000 [1.000, 1.000]" in lines[0]


def test_a_judge_that_always_says_a_is_reported_as_ties_and_full_bias(tmp_path: Path) -> None:
    common = [*study(tmp_path), "--metrics", "judge", "--criterion", "factuality", "--cache", tmp_path / "c.sqlite"]
    with scripted_server(tmp_path, "--judge", "first") as server:
        done = kt(*common, *at(server), "--out", tmp_path / "a", "--json")
    [row] = json.loads(done.stdout)["judges"][0]["comparisons"]
    # The first answer of sft is empty, which no judge is asked about.
    assert (row["win"]["count"], row["tie"]["count"], row["lose"]["count"], row["position_bias"]) == (1, 7, 0, 1)


def test_verdicts_that_are_none_are_counted_rejects(tmp_path: Path) -> None:
    common = [*study(tmp_path, 3), "--metrics", "judge", "--cache", tmp_path / "c.sqlite"]
    with scripted_server(tmp_path, "--judge", "none") as server:
        done = kt(*common, *at(server), "--out", tmp_path / "a")
    assert done.returncode == 0
    assert "1 win, 0 tie, 0 lose; position bias -; 2 rejected" in done.stdout
    assert len(list(read_jsonl(tmp_path / "a/judge/rejected.jsonl"))) == 6


def test_two_judges_and_how_far_they_agree(tmp_path: Path) -> None:
    common = [*study(tmp_path), "--metrics", "judge", "--cache", tmp_path / "c.sqlite", "--out", tmp_path / "a", "--json"]
    with scripted_server(tmp_path / "1") as one, scripted_server(tmp_path / "2", "--judge", "first") as two:
        second = ["--second-judge", "n", "--second-base-url", two.url]
        done = kt(*common, *at(one), *second)
        assert done.returncode == 0, done.stderr
        assert kt(*common, *at(one), "--second-judge", "m").returncode == 1
    results = json.loads(done.stdout)
    assert [judged["judge"] for judged in results["judges"]] == ["m", "n"]
    assert results["agreement"] == {"judges": ["m", "n"], "units": 21, "same": 0, "kappa": 0, "alpha": pytest.approx(-0.952381)}


def test_a_smaller_evaluation_leaves_nothing_of_the_larger(tmp_path: Path) -> None:
    common = [*study(tmp_path, 3), "--cache", tmp_path / "c.sqlite"]
    with scripted_server(tmp_path) as server:
        assert kt(*common, *PARTS, *at(server), "--out", tmp_path / "a").returncode == 0
        (tmp_path / "a/inputs.json").write_text("{}")  # `kt run` says there of what these results are
        for out in ("a", "b"):
            done = kt(*common, "--metrics", "judge", "--rule", "strict", "--limit", 2, *at(server), "--out", tmp_path / out)
            assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_who_is_compared_with_whom() -> None:
    assert comparisons(["a", "b", "c"], False) == [("a", "b"), ("a", "c")]
    assert comparisons(["a", "b", "c"], True) == [("a", "b"), ("a", "c"), ("b", "c")]


# ---- from a config ---------------------------------------------------------------------------------------------------


def config_of(folder: Path, url: str, **more: Any) -> Path:
    """Write a config of the study; return its place."""
    study(folder)
    values = {
        "answers": {name: str(folder / name) for name in ("kt", "sft")},
        "data": [str(folder / "test.json")],
        "out": str(folder / "y"),
        "cache": str(folder / "c.sqlite"),
        "metrics": ["meteor-no-wordnet", "judge", "facts"],
        "judge": {"backend": "openai", "model": "m", "base_url": [url]},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump({**values, **more}, sort_keys=False))
    return folder / "e.yaml"


def settings(*args: object) -> EvaluateConfig:
    """What the command makes of its arguments, before it does anything."""
    given = dict(command.make_context("evaluate", [str(one) for one in args]).params)
    del given["as_json"], given["quiet"]
    found = read_settings(given.pop("config"), given)
    assert isinstance(found, EvaluateConfig)
    return found


def test_a_config_evaluates_as_the_options_do_and_options_go_before_it(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        config = config_of(tmp_path, server.url)
        first = kt(config)
        assert first.returncode == 0, first.stderr
        given = ["--metrics", "meteor-no-wordnet,judge,facts", "--cache", tmp_path / "c.sqlite"]
        assert kt(*study(tmp_path), *given, *at(server), "--out", tmp_path / "b").returncode == 0
        assert tree(tmp_path / "y") == tree(tmp_path / "b")
        other = kt(config, "--limit", 3, "--metrics", "judge", "--judge", "n", "--revision", "1", "--out", tmp_path / "o")
        assert other.returncode == 0, other.stderr
    said = json.loads((tmp_path / "o/results.json").read_text())["settings"]
    assert (said["limit"], said["metrics"], said["judge"]) == (3, ["judge"], "n@1")
    assert kt(config, "--backend", "replay", "--out", tmp_path / "r").returncode == 0
    assert tree(tmp_path / "y") == tree(tmp_path / "r")


def test_options_about_judges_go_before_the_configs_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KT_CACHE", raising=False)
    url = "http://127.0.0.1:9/v1"
    second = {"backend": "vllm", "model": "n", "revision": "2"}
    config = config_of(tmp_path, url, second_judge=second, server={"dtype": "float32"}, all_pairs=True)
    found = settings(config, "--api-key-env", "OTHER", "--max-model-len", 99)
    assert found.cache == str(tmp_path / "c.sqlite")
    assert found.judge is not None
    assert found.second_judge is not None
    assert (found.judge.model, found.judge.base_url, found.judge.api_key_env) == ("m", [url], "OTHER")
    assert (found.second_judge.model, found.second_judge.revision, found.second_judge.base_url) == ("n", "2", [])
    assert (found.server.dtype, found.server.max_model_len, found.all_pairs) == ("float32", 99, True)
    replayed = settings(config, "--backend", "replay")
    assert [one and one.backend for one in (replayed.judge, replayed.second_judge)] == ["replay", "replay"]
    apart = settings(config, "--backend", "replay", "--second-backend", "openai").second_judge
    assert apart is not None
    assert apart.backend == "openai"
    alone = settings(config_of(tmp_path, url), "--second-judge", "n", "--answers", "a=x", "--answers", "b=y")
    assert alone.second_judge is not None
    assert (alone.second_judge.backend, alone.second_judge.base_url) == ("openai", [url])
    assert alone.answers == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ("metrcs: [judge]", [], "e.yaml: 1 wrong setting(s):\n  line 17: metrcs: unknown key; known keys: all_pairs"),
        ("server: {max_len: 5}", [], "line 17: server.max_len: unknown key"),
        ("rule: lenient", [], "line 17: rule: "),
        ("out:", [], "not YAML"),  # a key given twice
        ("second_judge: n", ["--second-backend", "vllm"], "line 17: second_judge: "),
    ],
)
def test_what_is_wrong_in_a_config_is_named_with_file_and_line(
    tmp_path: Path, lines: str, options: list[str], words: str
) -> None:
    config = config_of(tmp_path, "http://127.0.0.1:9/v1")
    with config.open("a") as file:
        file.write(f"{lines}\n")
    done = kt(config, *options)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "y").exists()


def test_a_config_may_lack_what_options_give(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("metrics: [meteor-no-wordnet]\n")
    done = kt(tmp_path / "e.yaml", *study(tmp_path))
    assert (done.returncode, "Missing option '--out' (or the key out in a config)" in done.stderr) == (2, True)
    assert kt(tmp_path / "e.yaml", *study(tmp_path), "--out", tmp_path / "y").returncode == 0
    gone = kt(tmp_path / "none.yaml")
    assert (gone.returncode, "none.yaml: " in gone.stderr) == (1, True)


def test_an_experiments_file_gives_its_evaluation(tmp_path: Path) -> None:
    """As `kt run` would do it: its methods' answers to its test questions, judged by the model of `build`."""
    study(tmp_path)
    for name, method in (("kt", "knowtuning"), ("sft", "sft")):
        (tmp_path / "run/generate").mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(tmp_path / "run/generate" / method)
    test = str(tmp_path / "test.json")
    values: dict[str, Any] = {"out": str(tmp_path / "run"), "model": "base", "data": [test], "test": [test]}
    values |= {"methods": ["sft", "knowtuning"], "evaluate": {"metrics": ["meteor-no-wordnet", "judge"]}}
    with scripted_server(tmp_path) as server:
        values["build"] = {"backend": "openai", "model": "m", "base_url": [server.url], "cache": str(tmp_path / "c.sqlite")}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
        done = kt(tmp_path / "x.yaml", "--limit", 2)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/evaluate/results.json").read_text())
    said = results["settings"]
    assert (said["compare"], said["judge"], said["limit"]) == ("knowtuning", "m", 2)
    for shipped in ("demo.yaml", "demo-study.yaml"):
        with pytest.raises(ConfigError, match=f"`kt run {shipped}` does it all"):
            settings(shipped)
    values["evaluate"] = {"metrics": ["meteor-no-wordnet"]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    plain = settings(tmp_path / "x.yaml")
    assert (plain.judge, plain.compare) == (None, None)
    judged = settings(tmp_path / "x.yaml", "--metrics", "judge")
    assert judged.judge is not None
    assert (judged.judge.model, judged.compare) == ("m", "knowtuning")


@pytest.mark.parametrize("metrics", [5, None, "judge", [["a"]], ["rouge"]])
def test_metrics_of_an_experiment_that_are_none_are_named(tmp_path: Path, metrics: Any) -> None:
    values = {"out": str(tmp_path / "run"), "model": "base", "data": ["d.json"], "test": ["t.json"], "methods": ["sft"]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**values, "evaluate": {"metrics": metrics}}))
    with pytest.raises(ConfigError, match="metrics"):
        settings(tmp_path / "x.yaml")


def test_another_judge_has_neither_revision_nor_address_of_the_configs(tmp_path: Path) -> None:
    judge = {"backend": "openai", "model": "m", "revision": "1", "base_url": ["http://127.0.0.1:9/v1"]}
    values = {"answers": {"sft": "a", "kt": "b"}, "data": ["d.json"], "out": "o", "metrics": ["judge"], "judge": judge}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(values))

    def judge_of(*options: str) -> tuple[Any, ...]:
        found = settings(tmp_path / "e.yaml", *options).judge
        assert found is not None
        return found.model, found.revision, found.base_url

    assert judge_of("--judge", "m") == ("m", "1", judge["base_url"])
    assert judge_of("--judge", "n") == ("n", "", judge["base_url"])
    assert not any(judge_of("--judge", "n.gguf", "--backend", "llama-cpp")[1:])


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def wrong(folder: Path) -> list[tuple[list[Any], int, str]]:
    common = study(folder, 2)
    (folder / "few").mkdir()
    write_jsonl(folder / "few/records.jsonl", [{"id": "q0", "question": "What of town 0?", "answer": "x"}])
    (folder / "empty.json").write_text(
        '[{"id": "q0", "question": "?", "answer": ""}, {"id": "q1", "question": "?", "answer": " "}]'
    )
    (folder / "own/facts").mkdir(parents=True)
    (folder / "own/facts/my-texts.txt").write_text("mine")
    words = ["--metrics", "meteor-no-wordnet"]
    one, data = common[:2], common[4:]
    return [
        ([*common, "--metrics", "judge"], 1, "metrics judge need a judge: give --judge MODEL"),
        ([*one, *data, "--metrics", "judge", "--judge", "m"], 1, "metric judge compares: give --answers NAME=DIR twice"),
        ([*common, "--metrics", "bertscore"], 1, "give --encoder FOLDER (`kt doctor` says"),
        ([*common, "--metrics", "bertscore", "--encoder", folder], 1, "no encoder's folder"),
        ([*common, "--metrics", "rouge"], 1, "metrics.0"),
        ([*common, *words, "--answers", f"few={folder / 'few'}"], 1, "few: no answer for 1 of 2 test items (q1)"),
        ([*common, *words, "--answers", f"gone={folder / 'gone'}"], 1, "gone: cannot be read"),
        ([*common, *words, "--answers", "sft"], 2, "say NAME=DIR"),
        ([*common, *words, "--answers", f"sft={folder / 'few'}"], 2, "sft is given twice"),
        ([*one, *words], 2, "Missing option '--data'"),
        ([*data, *words], 2, "Missing option '--answers'"),
        ([*common, *words, "--second-judge", "n"], 2, "--second-judge needs a first one"),
        ([*common, *words, "--out", folder / "kt"], 1, "holds other files (records.jsonl)"),
        ([*common, *words, "--out", folder / "own"], 1, "holds other files (facts/my-texts.txt)"),
        ([*common, *words, "--out", folder], 1, "few, kt, own, sft); give a folder for the evaluation alone"),
        ([*common, *words, "--judge", "m", "--backend", "openai"], 1, "the judge: 1 wrong setting(s)"),
        (
            [*common, "--metrics", "facts", "--judge", "m", "--backend", "replay", "--evidence", folder / "few/x"],
            1,
            "no file or folder",
        ),
        ([*common, "--metrics", "facts", "--judge", "m", "--backend", "replay"], 3, "the cache lacks 3 completion(s)"),
        (
            [*common, "--metrics", "facts", "--judge", "m", "--evidence", "gold", "--evidence", folder],
            1,
            "--evidence gold: no file",
        ),
        ([*one, "--data", folder / "empty.json", *words], 1, "empty.json: no usable item of 2"),
        ([*common, "--metrics", "facts", "--judge", "m", "--prompts", folder / "few"], 1, "holds no prompt"),
    ]


def test_documents_of_ones_own_are_never_taken_for_an_evaluation(tmp_path: Path) -> None:
    """An evaluation may write a folder called `facts`; here it is the user's."""
    common = [
        *study(tmp_path, 2),
        "--metrics",
        "facts",
        "--judge",
        "m",
        "--backend",
        "replay",
        "--cache",
        tmp_path / "c.sqlite",
    ]
    text = tmp_path / "study/facts/a.txt"
    text.parent.mkdir(parents=True)
    text.write_text("Belmora is old.")
    done = kt(*common, "--evidence", text.parent, "--out", tmp_path / "study")
    assert done.returncode == 1
    assert "give a folder for the evaluation alone" in done.stderr
    assert text.read_text() == "Belmora is old."


def test_two_judges_of_one_name_are_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    import shutil

    places = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        places.append(shutil.copy(tiny_gguf, tmp_path / folder / "judge.gguf"))
    common = [*study(tmp_path, 2), "--metrics", "judge", "--backend", "llama-cpp", "--cache", tmp_path / "c.sqlite"]
    done = kt(*common, "--judge", places[0], "--second-judge", places[1], "--out", tmp_path / "a")
    assert done.returncode == 1
    assert "both judges go by the name judge" in done.stderr


def test_what_is_wrong_is_said_and_nothing_is_asked(tmp_path: Path) -> None:
    from kt.cache import Cache

    Cache(tmp_path / "c.sqlite").close()
    for options, code, message in wrong(tmp_path):
        done = kt("--out", tmp_path / "a", "--cache", tmp_path / "c.sqlite", *options)
        assert (done.returncode, message in done.stderr) == (code, True), (options, done.returncode, done.stderr)
        assert not (tmp_path / "a/manifest.json").exists()


# ---- real engines ----------------------------------------------------------------------------------------------------


def real_study(folder: Path, count: int) -> list[object]:
    """Test items of real Dolly answers where they lie, else our own; one method answers with half of the gold answer."""
    path = DOLLY.with_name("dolly_test.json")
    lines = tiny_models.sentences(count * 4)
    own = [{"instruction": f"Tell me of case {i}.", "output": " ".join(lines[4 * i : 4 * i + 4])} for i in range(count)]
    (folder / "own.json").write_text(json.dumps(own))
    data = path if path.exists() else folder / "own.json"
    items = [read.item for read in read_items([data], count) if read.item is not None]
    for name, cut in (("whole", 1), ("half", 2)):
        rows = [{**item, "answer": item["answer"][: len(item["answer"]) // cut]} for item in items]
        write_jsonl(folder / name / "records.jsonl", rows)
    return ["--answers", f"whole={folder / 'whole'}", "--answers", f"half={folder / 'half'}", "--data", data, "--limit", count]


@pytest.mark.xdist_group("llama")
@needs("bert_score", "torch", "llama_cpp")
def test_all_parts_with_a_real_engine_a_real_encoder_and_documents(
    tmp_path: Path, llama_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random tiny judge: its verdicts mean nothing, but every one fits the schema, and the rerun is the same bytes."""
    monkeypatch.setenv("KT_API_KEY", llama_server.api_key)
    monkeypatch.setenv("KT_WORDNET", str(make_wordnet(tmp_path / "wordnet")))
    encoder = make_encoder(tmp_path / "encoder")
    common = [*real_study(tmp_path, 6), "--cache", tmp_path / "c.sqlite", "--metrics", "meteor,bertscore,judge,score,facts"]
    (tmp_path / "notes.md").write_text("The harbour is old.")
    common += ["--encoder", encoder, "--encoder-layer", 2, "--evidence", tmp_path / "notes.md"]
    judge = ["--judge", llama_server.model, "--backend", "llama-cpp", "--base-url", llama_server.base_url]
    first = kt(*common, *judge, "--out", tmp_path / "a", "--json")
    assert first.returncode == 0, first.stderr
    assert kt(*common, "--judge", llama_server.model, "--backend", "replay", "--out", tmp_path / "b").returncode == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    results = json.loads(first.stdout)
    whole = results["methods"]["whole"]
    assert whole["metrics"]["bertscore-f1"]["mean"] == pytest.approx(1, abs=1e-5)
    assert whole["metrics"]["meteor"]["mean"] > results["methods"]["half"]["metrics"]["meteor"]["mean"]
    for row in results["judges"][0]["comparisons"]:
        assert row["pairs"] + row["rejected"] == 6
        assert sum(row[name]["count"] for name in ("win", "tie", "lose")) == row["pairs"]
    for verdict in read_jsonl(tmp_path / "a/judge/records.jsonl"):
        assert [json.loads(text)["verdict"] for text in verdict["texts"]] == verdict["verdicts"]
    counts = whole["facts"]
    assert counts["correct"] + counts["incorrect"] + counts["unchecked"] == counts["facts"]
    assert counts["answers"] + counts["rejected"] == 6
    settings = results["settings"]
    assert (settings["encoder"]["layer"], settings["evidence"], len(settings["wordnet"])) == (2, "collection", 16)


@pytest.mark.xdist_group("llama")
@needs("llama_cpp")
def test_a_hundred_dolly_items_twice_and_the_second_time_from_the_cache_alone(tmp_path: Path, llama_server: Any) -> None:
    """The second run asks a port where nothing listens."""
    if not DOLLY.with_name("dolly_test.json").exists():
        pytest.skip(f"{DOLLY.parent} is not here: real Dolly data are tested only where they lie beside the checkout")
    common = [*real_study(tmp_path, 100), "--cache", tmp_path / "c.sqlite", "--criterion", "factuality"]
    common += ["--metrics", "meteor-no-wordnet,judge,score,facts", "--judge", llama_server.model, "--backend", "llama-cpp"]
    first = kt(*common, "--base-url", llama_server.base_url, "--out", tmp_path / "a", KT_API_KEY=llama_server.api_key)
    assert first.returncode == 0, first.stderr
    assert "evaluated 100 items" in first.stdout
    again = kt(*common, "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    assert "; 0 calls sent" in again.stdout
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
