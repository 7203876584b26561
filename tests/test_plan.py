"""What the shipped experiments need of a GPU, and where the figures come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kt.errors import ConfigError, InputError
from kt.plan import plan, shape_of
from kt.train_config import METHODS, build_settings, needed_trainings, read_experiment, trainer_settings

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if "methods:" in path.read_text())


def test_there_are_experiments() -> None:
    assert {"dolly-7b.yaml", "dolly-13b.yaml", "medquad-7b.yaml", "tiny.yaml"} <= {path.name for path in EXPERIMENTS}


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.name != "tiny.yaml"], ids=lambda p: p.name)
def test_a_shipped_experiment_loads_and_fits_its_card(path: Path) -> None:
    config = read_experiment(path)
    needs = plan(config)
    assert [need.name for need in needs][:3] == ["sft", "ka", "kc"]
    card = 24 if "GPU of 24" in path.read_text() or "16 to 24" in path.read_text() else 80
    sharded = config.processes * int(config.torchrun.get("nnodes", 1))
    assert all(5 < need.memory_gb < card for need in needs), [need.memory_gb for need in needs]
    assert all(0 < need.hours < 24 for need in needs)
    batch = {s: trainer_settings(config, s) for s in ("sft", "ka", "kc")}  # type: ignore[attr-defined]
    sizes = {s: b["per_device_train_batch_size"] * b["gradient_accumulation_steps"] * sharded for s, b in batch.items()}
    assert sizes == {"sft": 32, "ka": 32, "kc": 16}, "the paper's batches"


def test_a_dry_run_prints_memory_and_time() -> None:
    command = [sys.executable, "-m", "kt", "run", str(ROOT / "configs/dolly-7b.yaml"), "--dry-run"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.splitlines()
    assert len(lines) == 8
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


def test_methods_share_what_they_share() -> None:
    config = read_experiment(ROOT / "configs/dolly-7b.yaml")
    names = [training.name for training in needed_trainings(config)]
    assert names == [
        "sft",
        "ka",
        "kc",
        "kc-without-ka",
        *(f"kc-without-{a}" for a in ("completeness", "factuality", "logicality")),
    ]
    alone = config.model_copy(update={"methods": ["-KC"]})
    assert [training.name for training in needed_trainings(alone)] == ["sft", "ka"], "sft judges the difficulty"
    random = alone.model_copy(update={"build": {"difficulty": {"mode": "random"}}})
    assert [training.name for training in needed_trainings(random)] == ["ka"]
    assert METHODS["-KLC"][-1].aspects == ("completeness", "factuality")


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
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"out: a\nmodel: m\ndata: [d]\n{line}\n")
    with pytest.raises(ConfigError, match=says):
        read_experiment(path)
