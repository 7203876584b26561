"""What the shipped experiments need of a GPU, and where the figures come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kt.config import EvaluateConfig, validate
from kt.errors import ConfigError, InputError
from kt.plan import plan, shape_of
from kt.train_config import (
    METHODS,
    build_settings,
    evaluate_settings,
    loss_settings,
    needed_trainings,
    needs_build,
    read_experiment,
    trainer_settings,
)

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if "methods:" in path.read_text())


def test_there_are_experiments() -> None:
    assert {"dolly-7b.yaml", "dolly-13b.yaml", "medquad-7b.yaml", "tiny.yaml"} <= {path.name for path in EXPERIMENTS}


ON_A_GPU = [path for path in EXPERIMENTS if path.name != "tiny.yaml" and "world:" not in path.read_text()]


@pytest.mark.parametrize("path", ON_A_GPU, ids=lambda p: p.name)
def test_a_shipped_experiment_loads_and_fits_its_card(path: Path) -> None:
    config = read_experiment(path)
    needs = plan(config)
    assert [need.name for need in needs][:5] == ["sft", "ka", "rlaif", "facttune", "kc"]
    card = 24 if "GPU of 24" in path.read_text() or "16 to 24" in path.read_text() else 80
    sharded = config.processes * int(config.torchrun.get("nnodes", 1))
    assert all(5 < need.memory_gb < card for need in needs), [need.memory_gb for need in needs]
    assert all(0 < need.hours < 24 for need in needs)
    measured = validate(EvaluateConfig, evaluate_settings(config), path)
    assert list(measured.answers) == config.methods
    assert (measured.compare, measured.prompts, measured.offline) == ("knowtuning", "default", True)
    batch = {s: trainer_settings(config, s) for s in ("sft", "ka", "kc")}  # type: ignore[attr-defined]
    sizes = {s: b["per_device_train_batch_size"] * b["gradient_accumulation_steps"] * sharded for s, b in batch.items()}
    assert sizes == {"sft": 32, "ka": 32, "kc": 16}, "the paper's batches"
    for baseline in ("rlaif", "facttune"):
        own = trainer_settings(config, "kc", baseline)
        assert own["per_device_train_batch_size"] * own["gradient_accumulation_steps"] * sharded == 16, "and the baselines'"


def test_a_study_is_planned_by_its_towns() -> None:
    rows = {need.name: need.rows for need in plan(read_experiment(ROOT / "configs/demo.yaml"))}
    assert [rows[name] for name in ("sft", "rlaif", "ka", "kc")] == [60, 60, 120, 180]


def test_a_dry_run_prints_memory_and_time() -> None:
    command = [sys.executable, "-m", "kt", "run", str(ROOT / "configs/dolly-7b.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    lines = done.stdout.splitlines()
    assert "not here, so 4,000 items of Dolly's length are assumed" in done.stderr
    assert len(lines) == 10
    assert all("GB of GPU memory" in line for line in lines[:-1])
    needs = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, cwd="/").stdout)
    assert needs[0]["rows"] == 4000


def test_a_shape_is_read_from_the_model_or_its_name(tiny_llama: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(tiny_llama / "model.safetensors")
    norms = sum(w.numel() for name, w in weights.items() if "norm" in name)
    assert shape_of(str(tiny_llama)).parameters == sum(w.numel() for w in weights.values()) - norms
    assert shape_of("models/Llama-2-7b-hf").parameters == pytest.approx(7e9)
    with pytest.raises(InputError, match="its name does not tell its size"):
        shape_of("models/unknown")


@pytest.mark.parametrize(
    ("text", "says"), [("{}", "has no 'num_hidden_layers'"), ("{", "cannot be read"), ("[]", "cannot be read")]
)
def test_a_damaged_config_of_a_model_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=says):
        shape_of(str(tmp_path))


def test_methods_share_what_they_share() -> None:
    config = read_experiment(ROOT / "configs/dolly-7b.yaml")
    names = [training.name for training in needed_trainings(config)]
    assert names == [
        "sft",
        "ka",
        "rlaif",
        "facttune",
        "kc",
        "kc-without-ka",
        *(f"kc-without-{a}" for a in ("completeness", "factuality", "logicality")),
    ]
    alone = config.model_copy(update={"methods": ["-KC"]})
    assert [training.name for training in needed_trainings(alone)] == ["sft", "ka"], "sft judges the difficulty"
    random = alone.model_copy(update={"build": {"difficulty": {"mode": "random"}}})
    assert [training.name for training in needed_trainings(random)] == ["ka"]
    rivals = alone.model_copy(update={"methods": ["rlaif", "facttune"]})
    assert [training.name for training in needed_trainings(rivals)] == ["sft", "rlaif", "facttune"]
    assert not needs_build(rivals), "they need none of the data of the two stages"
    assert METHODS["-KLC"][-1].aspects == ("completeness", "factuality")


def test_a_baseline_is_plain_dpo_from_sft_with_the_settings_of_kc(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "out: a\nmodel: m\ndata: [d]\nkc: {beta: 0.2, gamma: 0.5, reference: base, learning_rate: 2e-5, seed: 1}\n"
        "rlaif: {learning_rate: 3e-5}\nfacttune: {beta: 0.3}\n"
    )
    config = read_experiment(path)
    [rlaif], [facttune] = (METHODS[name][1:] for name in ("rlaif", "facttune"))
    assert (rlaif.start, facttune.start) == ("sft", "sft")
    losses = [loss_settings(config, training) for training in (rlaif, facttune, METHODS["knowtuning"][1])]
    assert [(loss.beta, loss.gamma, loss.reference) for loss in losses] == [
        (0.2, 0, "ka"),
        (0.3, 0, "ka"),
        (0.2, 0.5, "base"),
    ]
    rates = [trainer_settings(config, "kc", name)["learning_rate"] for name in (None, "rlaif", "facttune")]  # type: ignore[arg-type]
    assert rates == [2e-5, 3e-5, 2e-5]
    assert (config.rlaif.samples, config.facttune.samples) == (2, 10)


def test_the_evaluation_of_an_experiment_takes_the_rest_from_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "out: a\nmodel: m\ndata: [d]\ntest: [t]\nmethods: [sft, rlaif]\nevaluate: {metrics: [judge, facts], workers: 3}\n"
        "build: {model: w, backend: llama-cpp, prompts: compact, cache: c, workers: 2, limit: 9, fallback: {}}\n"
    )
    config = read_experiment(path)
    made = validate(EvaluateConfig, evaluate_settings(config), path)
    assert made.judge is not None
    assert (made.judge.model, made.judge.backend, made.prompts, made.cache) == ("w", "llama-cpp", "compact", "c")
    assert (made.workers, made.limit, made.compare, made.data) == (3, None, None, ["t"])
    assert made.answers == {"sft": "a/generate/sft", "rlaif": "a/generate/rlaif"}
    alone = validate(EvaluateConfig, evaluate_settings(config.model_copy(update={"methods": ["sft"]})), path)
    assert alone.metrics == ["facts"], "one method is compared with none"
    plain = evaluate_settings(config.model_copy(update={"evaluate": {"metrics": ["meteor"]}}))
    assert "judge" not in plain, "nobody is asked"


def test_a_plan_counts_every_two_samples(tmp_path: Path) -> None:
    data = tmp_path / "d.json"
    data.write_text(json.dumps([{"instruction": f"Who is {i}?", "output": "He is a man."} for i in range(5)]))
    path = tmp_path / "x.yaml"
    path.write_text(f"out: a\nmodel: x-1b\ndata: [{data}]\nmethods: [rlaif, facttune]\nfacttune: {{samples: 5}}\n")
    needs = {need.name: need for need in plan(read_experiment(path))}
    assert (needs["rlaif"].rows, needs["facttune"].rows) == (5, 5 * 10)
    # 5 ranked samples: rows of 1, 2, 3 and, below the best, of 3 and 1 pairs.
    prompt, answer = round(1.35 * 3) + 40, round(1.35 * 4)
    assert needs["facttune"].tokens == 5 * (5 * prompt + (5 + 10) * answer)


def test_the_build_of_an_experiment_takes_the_rest_from_it() -> None:
    values = {"out": "runs/x", "model": "base", "data": ["a.json"], "seed": 7, "build": {"model": "teacher", "seed": 8}}
    made = build_settings(values)
    assert (made["out"], made["data"], made["seed"], made["model"]) == ("runs/x/data", ["a.json"], 8, "teacher")
    assert made["difficulty"] == {"scorer": "base", "adapter": "runs/x/sft", "template": "alpaca"}
    assert build_settings({**values, "lora": None})["difficulty"]["scorer"] == "runs/x/sft"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("kc: {beta: -1}", "kc.beta"),
        ("lora: 8", "lora"),
        ("methods: [sft, magic]", "unknown: magic"),
        ("batch: 1", "unknown key"),
        ("facttune: {samples: 1}", "facttune.samples"),
        ("rlaif: {criteria: [helpful]}", "rlaif.criteria"),
        ("evaluate: {}", "no questions to answer"),
        ("seed: -5", "seed"),
        (f"seed: {10**30}", "seed"),
        ("kc: {learning_rate: -1}", "kc.learning_rate"),
        ("ka: {per_device_train_batch_size: 0}", "ka.per_device_train_batch_size"),
        ("trainer: {gradient_accumulation_steps: 0}", "trainer.gradient_accumulation_steps"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"out: a\nmodel: m\ndata: [d]\n{line}\n")
    with pytest.raises(ConfigError, match=says):
        read_experiment(path)
