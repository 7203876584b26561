"""Answers of a base and its adapters: those that transformers gives one by one, whatever shares their batch; replayed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from kt.config import GenerateConfig, validate
from kt.errors import ConfigError, InputError
from kt.generation import generate
from kt.records import read_jsonl
from kt.template import prompt_tokens, render_prompt

torch = pytest.importorskip("torch")

from scoring_models import save_adapter  # noqa: E402

from kt.decoding import _Draw, end_tokens  # noqa: E402
from kt.models import load  # noqa: E402

QUESTIONS = [line.rstrip(".") + "?" for line in tiny_models.sentences(9, seed=4)] + ["Who?", "Name one. " * 30]
TOKENS = 24


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: str(save_adapter(folder / name, tiny_llama, seed=seed)) for seed, name in enumerate(("sft", "kc"), 1)}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "questions.json", [{"instruction": q, "output": "gold"} for q in QUESTIONS])


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def run(folder: Path, model: Path, data: Path, name: str = "out", **settings: Any) -> dict[str, list[Any]]:
    """Generate and return the records by adapter."""
    given = {"cache": str(folder / "cache.sqlite"), "max_tokens": TOKENS, **settings}
    config = GenerateConfig(data=[str(data)], out=str(folder / name), model=str(model), **given)
    result = generate(config)
    assert [step.name for step in result.steps] == list(config.named)
    return {step.name: list(read_jsonl(step.records)) for step in result.steps}


def one_by_one(model: Path, adapter: str | None, template: str = "alpaca") -> list[tuple[str, str]]:
    """Return (answer, finish reason) by transformers alone: no batch, no padding."""
    local = load(model, adapter, device="cpu")
    found = []
    for question in QUESTIONS:
        ids = prompt_tokens(local.tokenizer, render_prompt(question, template, local.tokenizer))
        with torch.no_grad():
            said = local.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        words = said[0, len(ids) :].tolist()
        text = local.tokenizer.decode(words, skip_special_tokens=True).rstrip("\ufffd")
        found.append((text.strip(), "stop" if words[-1] == local.tokenizer.eos_token_id else "length"))
    return found


def tree(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "engine.log"}


def kt(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kt", "generate", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_a_batch_says_what_each_question_alone_is_told(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path, template: str
) -> None:
    found = run(tmp_path, tiny_llama, questions, adapters={**adapters, "base": None}, template=template, batch_size=5)
    for name, records in found.items():
        assert [record["question"] for record in records] == QUESTIONS
        told = [(record["answer"], record["finish_reason"]) for record in records]
        assert told == one_by_one(tiny_llama, adapters.get(name), template)
    assert {record["finish_reason"] for records in found.values() for record in records} == {"stop", "length"}
    assert found["sft"] != found["kc"] != found["base"]
    manifest = json.loads((tmp_path / "out/kc/manifest.json").read_text())
    assert (manifest["written"], manifest["config"]["template"]) == (len(QUESTIONS), template)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_the_batch_size_changes_no_answer(tiny_llama: Path, questions: Path, tmp_path: Path, drawn: dict[str, float]) -> None:
    found = [
        run(tmp_path, tiny_llama, questions, f"by-{size}", batch_size=size, cache=str(tmp_path / f"{size}"), **drawn)
        for size in (1, 4, 11)
    ]
    assert found[0] == found[1] == found[2]
    if drawn:
        greedy = run(tmp_path, tiny_llama, questions, "greedy")
        other = run(tmp_path, tiny_llama, questions, "other", seed=43, **drawn)
        assert len({json.dumps(each) for each in (found[0], greedy, other)}) == 3


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = _Draw([str(number) for number in range(20_000)])
    chosen = Counter(draws(torch.zeros(0), logits.expand(20_000, 4)).argmax(1).tolist())
    expected = logits.softmax(0).tolist()
    assert [chosen[token] / 20_000 for token in range(4)] == pytest.approx(expected, abs=0.01)


def test_the_same_again_loads_no_torch_and_gives_the_same_bytes(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    run(tmp_path, tiny_llama, questions, "first", adapters=adapters)
    values = {"data": [str(questions)], "out": str(tmp_path / "second"), "cache": str(tmp_path / "cache.sqlite")}
    values |= {"model": str(tiny_llama), "adapters": adapters, "max_tokens": TOKENS}
    code = f"""
import sys
from kt.config import GenerateConfig
from kt.generation import generate
result = generate(GenerateConfig(**{values!r}))
assert (result.counters.sent, result.counters.hits) == (0, {2 * len(QUESTIONS)})
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


def test_a_replay_needs_no_weights_and_a_miss_is_said(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, tiny_llama, questions, "first", adapters=adapters)
    elsewhere = {name: f"/elsewhere/{Path(path).name}" for name, path in adapters.items()}
    gone = Path("/elsewhere") / tiny_llama.name
    assert run(tmp_path, gone, questions, "again", adapters=elsewhere, backend="replay") == first
    assert tree(tmp_path / "first") == tree(tmp_path / "again")
    common = ["--model", tiny_llama, "--data", questions, "--cache", tmp_path / "cache.sqlite", "--backend", "replay"]
    missing = kt(*common, "--out", tmp_path / "x", "--adapter", f"sft={adapters['sft']}")
    assert missing.returncode == 3  # asked with other max_tokens
    assert "the cache lacks 11" in missing.stderr


def test_cut_and_empty_answers_are_answers(tiny_llama: Path, questions: Path, tmp_path: Path) -> None:
    cut = run(tmp_path, tiny_llama, questions, max_tokens=1)["base"]
    assert len(cut) == len(QUESTIONS)
    assert sum(record["finish_reason"] == "length" for record in cut) > len(QUESTIONS) / 2
    local = load(tiny_llama, device="cpu")
    ids = prompt_tokens(local.tokenizer, render_prompt(QUESTIONS[0]))
    first = int(local.model(torch.tensor([ids])).logits[0, -1].argmax())
    copy = shutil.copytree(tiny_llama, tmp_path / "ends-at-once")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [first]}))
    assert end_tokens(load(copy, device="cpu")) == [local.tokenizer.eos_token_id, first]
    empty = run(tmp_path, copy, questions, "empty")["base"][0]
    assert (empty["answer"], empty["finish_reason"]) == ("", "stop")


def test_sampling_settings_of_the_folder_do_not_count(tiny_llama: Path, questions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "opinionated")
    settings = json.loads((copy / "generation_config.json").read_text())
    opinions = {"repetition_penalty": 9.0, "do_sample": True, "temperature": 3.0, "top_k": 3, "max_new_tokens": 2}
    (copy / "generation_config.json").write_text(json.dumps(settings | opinions))
    assert run(tmp_path, copy, questions, "a") == run(tmp_path, tiny_llama, questions, "b")


def test_a_question_without_room_for_its_answer_is_rejected_alone(tmp_path: Path, questions: Path) -> None:
    small = tiny_models.make_llama(tmp_path / "small", context=160)
    found = run(tmp_path, small, questions)["base"]
    (reject,) = read_jsonl(tmp_path / "out/base/rejected.jsonl")
    assert reject["record"]["question"] == QUESTIONS[-1]
    assert "small takes 160: lower --max-tokens" in reject["reason"]
    assert len(found) == len(QUESTIONS) - 1


def test_questions_need_no_answers_and_keep_the_ids_of_those_that_have_them(tiny_llama: Path, tmp_path: Path) -> None:
    from kt.items import read_items

    rows = [
        {"question": "A?"},
        {"instruction": "B?", "input": "more"},
        {"prompt": "C?"},
        {"prompt": [{"role": "user", "content": "D?"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "E?"}]},
        {"id": 7, "question": "F?", "answer": "gold"},
        {"question": "G?", "answer": "gold"},
        {"question": "H?", "answer": ""},
    ]
    data = write(tmp_path / "q.json", rows)
    found = run(tmp_path, tiny_llama, data, max_tokens=2)["base"]
    assert [record["question"] for record in found] == ["A?", "B?\nmore", "C?", "D?", "E?", "F?", "G?"]
    answered = [read.item["id"] for read in read_items([write(tmp_path / "a.json", rows[5:7])]) if read.item]
    assert [record["id"] for record in found][5:] == answered
    (reject,) = read_jsonl(tmp_path / "out/items/rejected.jsonl")
    assert reject["reason"] == "empty answer"
    with pytest.raises(InputError, match="columns text; expected"):
        run(tmp_path, tiny_llama, write(tmp_path / "t.json", [{"text": "x"}]))


def test_killed_and_started_again_it_asks_only_the_rest(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{line}?"} for line in tiny_models.sentences(120, seed=8)]
    data, cache = write(tmp_path / "q.json", rows), tmp_path / "c.sqlite"
    args = ["--model", tiny_llama, "--data", data, "--cache", cache, "--max-tokens", 200, "--batch-size", 4]
    process = subprocess.Popen([sys.executable, "-m", "kt", "generate", *map(str, args), "--out", str(tmp_path / "killed")])
    while answers(cache) < 8 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = answers(cache)
    assert 8 <= kept < 120
    assert not (tmp_path / "killed/base/manifest.json").exists()
    again = kt(*args, "--out", tmp_path / "killed", "--json")
    assert json.loads(again.stdout)["counters"]["sent"] == 120 - kept
    assert kt(*args[:4], "--cache", tmp_path / "d", *args[6:], "--out", tmp_path / "whole").returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def answers(cache: Path) -> int:
    if not cache.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM completions").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def test_what_does_not_fit_is_said_before_anything_is_asked(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    other = tiny_models.make_llama(tmp_path / "other", seed=5)
    trained = shutil.copytree(adapters["sft"], tmp_path / "trained")
    from kt.weights import fingerprint

    (trained / "manifest.json").write_text(json.dumps({"inputs": {"model": fingerprint(tiny_llama)}}))
    assert run(tmp_path, tiny_llama, questions, adapters={"x": str(trained)}, limit=1)
    common = ["--data", questions, "--out", tmp_path / "o", "--cache", tmp_path / "c"]
    for said, code, *options in (
        ("was trained on another base", 1, "--model", other, "--adapter", f"x={trained}"),
        ("no adapter_config.json there", 1, "--model", tiny_llama, "--adapter", f"x={tmp_path}"),
        ("no model folder on this machine", 1, "--model", tmp_path / "none"),
        ("an adapter's name is that of its folder", 1, "--model", tiny_llama, "--adapter", "../x=y"),
        ("give NAME=PATH, each name once", 2, "--model", tiny_llama, "--adapter", "x"),
        ("--offline: example.org is not", 3, "--model", tiny_llama, "--base-url", "http://example.org/v1", "--offline"),
        ("written by the model's tokenizer", 1, "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--template", "chat"),
        ("connection failed", 1, "--model", tiny_llama, "--base-url", "http://127.0.0.1:9/v1"),
    ):
        done = kt(*common, *options)
        assert (done.returncode, said in done.stderr) == (code, True), (options, done.stderr)
    assert not list((tmp_path / "o").glob("*/manifest.json"))


# ---- served ----------------------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("vllm")
def test_a_vllm_that_kt_starts_answers_for_two_adapters_and_the_base(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    """One server, three weights; transformers answers the same, but where rounding decides between two tokens."""
    pytest.importorskip("vllm")
    common: dict[str, Any] = {"adapters": {**adapters, "base": None}, "server": {"max_model_len": 1024}}
    served = run(tmp_path, tiny_llama, questions, "served", backend="vllm", **common)
    local = run(tmp_path, tiny_llama, questions, "local", cache=str(tmp_path / "other"), **common)
    for name, records in served.items():
        same = [one == other for one, other in zip(records, local[name], strict=True)]
        assert sum(same) >= 0.8 * len(QUESTIONS), (records, local[name])
    assert served["sft"] != served["kc"] != served["base"]
    again = run(tmp_path, tiny_llama, questions, "again", backend="replay", **common)
    assert again == served
    assert tree(tmp_path / "again") == tree(tmp_path / "served")
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        known = db.execute("SELECT model, revision, engine FROM completions GROUP BY 1, 2, 3").fetchall()
    assert {model for model, _, _ in known} == {tiny_llama.name, f"{tiny_llama.name}+sft", f"{tiny_llama.name}+kc"}
    assert len({revision for _, revision, _ in known}) == 3
    assert {engine for _, _, engine in known} == {"vllm"}


@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_a_running_vllm_is_asked_with_the_tokens_of_the_training_prompt(
    tiny_llama: Path, questions: Path, tmp_path: Path, vllm_server: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setenv("KT_API_KEY", vllm_server.api_key)
    url = {"backend": "vllm", "base_url": [vllm_server.base_url], "template": template}
    served = run(tmp_path, tiny_llama, questions, "served", **url)["base"]
    told = one_by_one(tiny_llama, None, template)
    same = [(record["answer"], record["finish_reason"]) == one for record, one in zip(served, told, strict=True)]
    assert sum(same) >= 0.8 * len(QUESTIONS), (served, told)
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        ((task, canary),) = db.execute("SELECT task, canary FROM models").fetchall()
    assert (task, canary is None) == ("generate", False)
    assert os.environ["KT_API_KEY"] not in (tmp_path / "cache.sqlite").read_bytes().decode("latin-1")


def test_fewer_samples_are_the_first_of_more(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    """Each is drawn by its number alone; the second run has the first three of each question from the cache."""
    drawn = {"temperature": 1.0, "adapters": {"sft": adapters["sft"]}}
    three = run(tmp_path, tiny_llama, questions, samples=3, **drawn)["sft"]
    one = run(tmp_path, tiny_llama, questions, "one", cache=str(tmp_path / "other.sqlite"), **drawn)["sft"]
    assert [record["answer"] for record in three[::3]] == [record["answer"] for record in one]
    assert [record["id"] for record in three[:4]] == [f"{one[0]['id']}/sample-{i}" for i in (1, 2, 3)] + [
        f"{one[1]['id']}/sample-1"
    ]
    assert [record["item"] for record in three] == [record["id"] for record in one for _ in range(3)]
    assert len({record["answer"] for record in three}) > 2 * len(one), "they differ"
    five = run(tmp_path, tiny_llama, questions, "five", samples=5, **drawn)["sft"]
    assert [five[5 * i + j] for i in range(len(one)) for j in range(3)] == three
    rows = sqlite3.connect(tmp_path / "cache.sqlite").execute("SELECT count(*) FROM completions").fetchone()[0]
    assert rows == 5 * len(one), "the three were asked once"


def test_several_samples_of_the_likeliest_answer_are_refused() -> None:
    with pytest.raises(ConfigError, match="several samples at temperature 0"):
        validate(GenerateConfig, {"data": ["d"], "out": "o", "model": "m", "samples": 2}, "options")


def test_another_template_than_that_of_the_training_is_refused(
    tiny_llama: Path, adapters: dict[str, str], questions: Path, tmp_path: Path
) -> None:
    trained = shutil.copytree(adapters["sft"], tmp_path / "trained")
    (trained / "manifest.json").write_text(json.dumps({"inputs": {"model": None, "settings": {"template": "chat"}}}))
    with pytest.raises(InputError, match="was trained with the template chat, not alpaca: give --template chat"):
        run(tmp_path, tiny_llama, questions, adapters={"sft": str(trained)})
    assert run(tmp_path, tiny_llama, questions, adapters={"sft": str(trained)}, template="chat")["sft"]
