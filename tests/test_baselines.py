"""The rivals' preferences: pairs counted by hand, twice the same bytes; what gives no pair; and both through `kt run`."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_server import Running, scripted_server
from test_experiment import bytes_of, run

from kt.baselines import build_preferences
from kt.config import BuildConfig
from kt.errors import InputError
from kt.judge import outcome_of
from kt.method_table import as_markdown, method_table
from kt.records import file_hash, read_jsonl, write_jsonl

pytest.importorskip("scipy")

GOLD = "Belmora is old. Belmora has a harbour. Belmora makes wool."
SAMPLES = {
    "q1": [
        ("Belmora is old.", "stop"),
        ("Belmora is old. Belmora is rich.", "stop"),
        ("Belmora is old. Belmora has a", "length"),
        ("", "stop"),
        ("Belmora is big. Belmora is new!!", "stop"),
        ("Belmora is old.", "stop"),
    ],
    "q2": [("Belmora makes wool.", "stop"), ("Belmora makes wool.", "stop"), ("Belmora makes", "length")],
    "q4": [("Belmora is old.", "stop"), ("Belmora was old", "stop")],
}
"""q3 was too long to be answered."""
JUDGED = {"criteria": ["completeness", "factuality", "logicality"], "rule": "default"}


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """Answers as `kt generate --samples` writes them, made up so that every outcome occurs."""
    items = [{"id": name, "question": f"What of {name}?", "answer": GOLD} for name in ("q1", "q2", "q3", "q4")]
    write_jsonl(tmp_path / "samples/items/records.jsonl", items)
    rows = [
        {"id": f"{name}/sample-{i}", "item": name, "question": f"What of {name}?", "answer": text, "finish_reason": why}
        for name, found in SAMPLES.items()
        for i, (text, why) in enumerate(found, 1)
    ]
    write_jsonl(tmp_path / "samples/sft/records.jsonl", rows)
    return tmp_path / "samples"


def build(folder: Path, server: Running | None, baseline: str, settings: dict[str, Any], out: str = "a") -> list[Any]:
    """Make the preferences; return their (id, chosen, rejected)."""
    asked = {"backend": "openai", "base_url": [server.url]} if server else {"backend": "replay"}
    config = BuildConfig(
        data=["-"],
        out="-",
        cache=str(folder / "c.sqlite"),
        model="m",
        prompts="compact",
        **asked,  # type: ignore[arg-type]
    )
    build_preferences(baseline, config, folder / "samples", folder / out, settings)
    pairs = read_jsonl(folder / out / "sets" / f"{baseline}.jsonl")
    return [(pair["id"], pair["chosen"], pair["rejected"]) for pair in pairs]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejects(folder: Path, step: str) -> dict[str, str]:
    return {reject["id"]: reject["reason"] for reject in read_jsonl(folder / step / "rejected.jsonl")}


def test_rlaif_pairs_are_those_made_by_hand(sampled: Path, tmp_path: Path) -> None:
    """The judge prefers the longer answer, so that 2 and 5, of one length, tie."""
    with scripted_server(tmp_path) as server:
        pairs = build(tmp_path, server, "rlaif", JUDGED)
        sent = len(server.received())
        assert sent == (3 + 1) * 3 * 2, "three pairs of q1 and one of q4, by three criteria, in both orders"
        assert build(tmp_path, server, "rlaif", JUDGED, "b") == pairs
        assert len(server.received()) == sent
    short, old, new = SAMPLES["q1"][0][0], SAMPLES["q1"][1][0], SAMPLES["q1"][4][0]
    assert pairs == [("q1/2-over-1", old, short), ("q1/5-over-1", new, short)]
    assert rejects(tmp_path / "a", "answers") == {
        "q2": "fewer than two answers to compare: 3 samples, 1 cut, 1 repeated",
        "q3": "no sample: the question leaves no room for an answer",
    }
    assert rejects(tmp_path / "a", "prefer") == {"q4": "no preference: 1 tied, 0 without a verdict"}
    assert build(tmp_path, None, "rlaif", JUDGED, "r") == pairs
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "r")


def test_facttune_pairs_are_those_made_by_hand(sampled: Path, tmp_path: Path) -> None:
    """Of q1's answers all, half and none of the facts stand in the gold answer; of q4's all and none."""
    with scripted_server(tmp_path) as server:
        pairs = build(tmp_path, server, "facttune", {"evidence": "gold"})
        sent = len(server.received())
        build(tmp_path, server, "facttune", {"evidence": "gold"}, "b")
        assert len(server.received()) == sent
    assert [name for name, _, _ in pairs] == ["q1/1-over-2", "q1/1-over-5", "q1/2-over-5", "q4/1-over-2"]
    assert pairs[2][1:] == ("Belmora is old. Belmora is rich.", "Belmora is big. Belmora is new!!")
    shares = {row["id"]: row["correct_share"] for row in read_jsonl(tmp_path / "a/facts/records.jsonl")}
    assert shares == {"q1/1": 1, "q1/2": 0.5, "q1/5": 0, "q4/1": 1, "q4/2": 0}
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["sets"] == {"facttune": 4}
    assert all(file_hash(tmp_path / "a" / name) == digest for name, digest in manifest["outputs"].items())
    assert str(tmp_path) not in json.dumps(manifest)
    assert build(tmp_path, None, "facttune", {"evidence": "gold"}, "r") == pairs
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "r")


def test_without_evidence_the_checker_judges_by_what_it_knows(sampled: Path, tmp_path: Path) -> None:
    """The scripted checker then calls correct whatever does not admit to be wrong: no answer is better than another."""
    with scripted_server(tmp_path) as server, pytest.raises(InputError, match="no answer is preferred to another"):
        build(tmp_path, server, "facttune", {"evidence": "none"})
    assert set(rejects(tmp_path / "a", "prefer").values()) == {
        "no preference: 3 answers with checked facts, all of one share of correct ones",
        "no preference: 2 answers with checked facts, all of one share of correct ones",
    }
    assert not (tmp_path / "a/manifest.json").exists()


@pytest.mark.parametrize(
    ("judge", "reason"), [("first", "3 tied, 0 without a verdict"), ("none", "0 tied, 3 without a verdict")]
)
def test_a_judge_without_a_preference_makes_no_pair(sampled: Path, tmp_path: Path, judge: str, reason: str) -> None:
    with scripted_server(tmp_path, "--judge", judge) as server, pytest.raises(InputError, match="no answer is preferred"):
        build(tmp_path, server, "rlaif", {**JUDGED, "criteria": ["factuality"]})
    assert rejects(tmp_path / "a", "prefer")["q1"] == f"no preference: {reason}"


# ---- real engines ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(tiny_llama: Path, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/tiny.yaml with the baselines alone; the tests' models have random weights, and so has every preference."""
    root = Path(__file__).parents[1]
    folder = tmp_path_factory.mktemp("baselines")
    values: dict[str, Any] = yaml.safe_load((root / "configs" / "tiny.yaml").read_text())
    questions = str(root / "examples" / "lighthouse.json")
    values |= {"out": str(folder / "run"), "model": str(tiny_llama), "data": [questions], "test": [questions]}
    # A checker of random weights says the same of every fact unless it writes a reason first: these prompts ask for one.
    values["build"] |= {"model": str(tiny_gguf), "cache": str(folder / "cache.sqlite"), "prompts": "default"}
    values["generate"] |= {"max_tokens": 48}
    values |= {"methods": ["sft", "rlaif", "facttune"], "rlaif": {"samples": 4}, "facttune": {"samples": 6}}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.xdist_group("llama")
def test_both_baselines_through_kt_run(experiment: Path) -> None:
    folder = experiment.parent / "run"
    stages = run(experiment)
    assert list(stages) == [
        "sft",
        "rlaif preferences",
        "rlaif",
        "facttune preferences",
        "facttune",
        *(f"generate {method}" for method in ("sft", "rlaif", "facttune")),
        "evaluate",
    ]
    assert not any(stages.values())
    assert all(run(experiment).values()), "the second time there is nothing to do"
    check_rlaif(folder)
    check_facttune(folder)
    for name in ("rlaif", "facttune"):
        inputs = json.loads((folder / name / "manifest.json").read_text())["inputs"]
        assert (inputs["settings"]["gamma"], inputs["settings"]["reference"]) == (0, "ka")
        assert inputs["rows"] == file_hash(folder / "preferences" / name / "sets" / f"{name}.jsonl")
        assert (folder / name / "adapter_model.safetensors").read_bytes() != (
            folder / "sft" / "adapter_model.safetensors"
        ).read_bytes()


def answers_by_question(place: Path) -> dict[str, dict[str, str]]:
    return {record["id"]: record["answers"] for record in read_jsonl(place / "answers/records.jsonl")}


def check_rlaif(folder: Path) -> None:
    """The pairs again, from the verdicts' own texts."""
    place = folder / "preferences/rlaif"
    votes: dict[tuple[str, str, str], list[int]] = {}
    for judged in read_jsonl(place / "judge/records.jsonl"):
        texts = [json.loads(text)["verdict"] for text in judged["texts"]]
        lead = {"win": 1, "tie": 0, "lose": -1}[outcome_of(texts, "default")]
        votes.setdefault((judged["item"], judged["one"], judged["other"]), []).append(lead)
    expected = []
    for item, answers in answers_by_question(place).items():
        for one, other in itertools.combinations(answers, 2):
            given = votes.get((item, one, other), [])
            if len(given) == 3 and sum(given):
                better, worse = (one, other) if sum(given) > 0 else (other, one)
                expected.append((item, answers[better], answers[worse]))
    found = [(pair["item"], pair["chosen"], pair["rejected"]) for pair in read_jsonl(place / "sets/rlaif.jsonl")]
    assert found == expected
    assert found


def check_facttune(folder: Path) -> None:
    place = folder / "preferences/facttune"
    counts: dict[tuple[str, str], list[int]] = {}
    for check in read_jsonl(place / "check/records.jsonl"):
        right = json.loads(check["texts"][0])["verdict"] == "correct"
        counts.setdefault((check["item"], check["name"]), []).append(right)
    shares = {key: round(sum(found) / len(found), 6) for key, found in counts.items()}
    expected = set()
    for item, answers in answers_by_question(place).items():
        scored = [name for name in answers if (item, name) in shares]
        better = (pair for pair in itertools.permutations(scored, 2) if shares[item, pair[0]] > shares[item, pair[1]])
        expected |= {(item, answers[one], answers[other]) for one, other in better}
    found = {(pair["item"], pair["chosen"], pair["rejected"]) for pair in read_jsonl(place / "sets/facttune.jsonl")}
    assert found == expected
    assert found


@pytest.mark.xdist_group("llama")
def test_a_changed_criterion_asks_for_new_pairs_and_samples_nothing(experiment: Path) -> None:
    run(experiment)
    values = yaml.safe_load(experiment.read_text())
    before = bytes_of(experiment.parent / "run" / "preferences" / "rlaif" / "samples")
    changed = experiment.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({**values, "rlaif": {**values["rlaif"], "criteria": ["factuality"]}}))
    redone = [name for name, skipped in run(changed).items() if not skipped]
    assert redone[0] == "rlaif preferences"
    assert set(redone) <= {"rlaif preferences", "rlaif", "generate rlaif", "evaluate"}
    assert bytes_of(experiment.parent / "run" / "preferences" / "rlaif" / "samples") == before


@pytest.mark.xdist_group("llama")
def test_the_run_ends_in_a_table_of_all_methods(experiment: Path) -> None:
    """Another method compared is another evaluation, and nothing else is done again."""
    run(experiment)
    values = yaml.safe_load(experiment.read_text())
    changed = experiment.with_name("compared.yaml")
    changed.write_text(yaml.safe_dump({**values, "evaluate": {**values["evaluate"], "compare": "facttune"}}))
    command = [sys.executable, "-m", "kt", "run", str(changed)]
    said = subprocess.run([*command, "--json", "--quiet"], capture_output=True, text=True, check=True).stdout
    found = json.loads(said)
    assert [stage["name"] for stage in found["stages"] if not stage["skipped"]] == ["evaluate"]
    results = json.loads((experiment.parent / "run/evaluate/results.json").read_text())
    assert found["results"] == results
    assert {(row["one"], row["other"]) for row in results["judges"][0]["comparisons"]} == {
        ("facttune", "sft"),
        ("facttune", "rlaif"),
    }
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert as_markdown(method_table(results)) in printed
    for name, method in results["methods"].items():
        assert re.search(rf"^\| {name} .*\b{method['facts']['correct']}\b", printed, re.M)
