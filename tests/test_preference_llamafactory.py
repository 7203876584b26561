"""The KC loss beside LLaMA-Factory's `pref_ftx` on one model and batch, in LLaMA-Factory's own environment.

KT_LLAMAFACTORY_PYTHON names a Python that imports llamafactory 0.9 (bench/README.md says how to make one); without it
the test is skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from kt.preference_data import pack_pairs
from kt.preference_rows import collate, score_answers
from kt.template import render_prompt
from kt.train_kc import KcCollator, KcTrainer, with_reference

PYTHON = os.environ.get("KT_LLAMAFACTORY_PYTHON", "")
LONG = "Keeps the keeper it, as it is said, near the northern harbour."
CHOSEN = "The keeper keeps it."
PAIRS = [
    {"id": f"q1/{n}", "aspect": "a", "prompt": "Who keeps bridge 1?", "chosen": CHOSEN, "rejected": rejected}
    for n, rejected in enumerate(["A sailor sold it.", "The keeper.", LONG])
] + [{"id": "q2/0", "aspect": "a", "prompt": "Who keeps 2?", "chosen": f"{CHOSEN} {LONG}", "rejected": "A sailor."}]


def available() -> bool:
    return bool(PYTHON) and subprocess.run([PYTHON, "-c", "import llamafactory"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny Llama, an adapter that is well off the base, and the pairs in LLaMA-Factory's format."""
    if not available():
        pytest.skip("KT_LLAMAFACTORY_PYTHON names no Python that imports llamafactory")
    folder = tmp_path_factory.mktemp("peer")
    make_llama(folder / "llama")
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=16, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "llama"), config).save_pretrained(folder / "adapter")
    rows = [{"prompt": render_prompt(p["prompt"]), "chosen": p["chosen"], "rejected": p["rejected"]} for p in PAIRS]
    (folder / "pairs.json").write_text(json.dumps(rows))
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def theirs(files):
    script = Path(__file__).with_name("llamafactory_peer.py")
    paths = [str(files / "llama"), str(files / "adapter"), str(files), str(files / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([PYTHON, str(script), *paths], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])


@pytest.fixture(scope="module")
def ours(files):
    tokenizer = AutoTokenizer.from_pretrained(files / "llama")
    base = AutoModelForCausalLM.from_pretrained(files / "llama", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, files / "adapter", is_trainable=True)
    items = with_reference(model, pack_pairs(tokenizer, PAIRS)[0], "base")
    args = TrainingArguments(str(files / "ours"), use_cpu=True, report_to=[], remove_unused_columns=False)
    trainer = KcTrainer(model, args, train_dataset=items)
    inputs = KcCollator()(items)
    loss, seen = trainer.compute_loss(trainer.model.eval(), inputs, return_outputs=True)
    loss.backward()
    gradient = {name: weight.grad.norm().item() for name, weight in model.named_parameters() if weight.grad is not None}
    scores = score_answers(model, collate([one.item.row for one in items], [one.item.lengths for one in items]))
    chosen, rejected = inputs["chosen"], inputs["rejected"]
    numbers = {
        "chosen_logps": scores.log_probs[chosen],
        "rejected_logps": scores.log_probs[rejected],
        "chosen_logps_avg": -scores.nll_means[chosen],
    }
    return {"loss": loss.item(), "margins": seen["margins"], "gradient_norms": gradient, **numbers}


@pytest.mark.parametrize("key", ["chosen_logps", "rejected_logps", "chosen_logps_avg"])
def test_answers_have_the_scores_that_llamafactory_gives_them(theirs, ours, key):
    assert ours[key].tolist() == pytest.approx(theirs[key], rel=1e-6, abs=1e-4)


def test_the_loss_is_that_of_pref_ftx(theirs, ours):
    assert ours["margins"].abs().min() > 0.001, "the policy is its reference: the margins would go untested"
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_every_weight_gets_a_gradient_of_the_same_size(theirs, ours):
    assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=1e-4, abs=1e-6)
