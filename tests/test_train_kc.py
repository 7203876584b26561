"""The KC trainer: step-0 loss, the choice of reference, accumulation, and a loss that is no number."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from kt.errors import TrainingError
from kt.preference_data import pack_pairs
from kt.train_kc import KcCollator, KcTrainer, with_reference

PAIRS = [
    {
        "id": f"q{n}/{aspect}",
        "aspect": aspect,
        "prompt": f"Who keeps {n}?",
        "chosen": "The keeper.",
        "rejected": f"No, {aspect}",
    }
    for n, aspect in [(1, "factuality"), (1, "logicality"), (1, "completeness"), (2, "factuality"), (3, "logicality"), (4, "a")]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"))


def make(folder, out, reference="ka", micro=6, parts=1, autocast=None, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=16, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    items = with_reference(model, pack_pairs(tokenizer, PAIRS)[0], reference, autocast)
    args = TrainingArguments(
        str(out), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, remove_unused_columns=False,
        disable_tqdm=True, per_device_train_batch_size=micro, gradient_accumulation_steps=parts, max_steps=3,
        seed=42, **options,
    )  # fmt: skip
    return KcTrainer(model, args, train_dataset=items), items


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def first_loss(trainer, items, gamma):
    trainer.gamma = gamma
    with torch.no_grad():
        return trainer.compute_loss(trainer.model.eval(), KcCollator()(items)).item()


def test_step_0_is_ln_2_with_the_ka_model_as_reference(folder, tmp_path):
    trainer, items = make(folder, tmp_path)
    assert first_loss(trainer, items, 0.0) == pytest.approx(math.log(2), abs=1e-5)
    assert first_loss(trainer, items, 0.2) > math.log(2) + 0.1


def test_the_base_as_reference_is_another_one(folder, tmp_path):
    trainer, items = make(folder, tmp_path, "base")
    assert abs(first_loss(trainer, items, 0.0) - math.log(2)) > 1e-3


def test_the_reference_is_computed_in_the_precision_that_the_policy_trains_in(folder, tmp_path):
    first = {}
    for autocast in (torch.bfloat16, None):
        trainer, _ = make(folder, tmp_path, micro=1, autocast=autocast, bf16=True)
        trainer.gamma = 0.0
        first[autocast] = losses(trainer)[0]
    assert first[torch.bfloat16] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first[None] - math.log(2)) > 1e-5


@pytest.mark.parametrize(("micro", "parts"), [(3, 2), (1, 6)], ids=["of several items", "some without any"])
def test_micro_batches_change_no_loss(folder, tmp_path, micro, parts):
    whole, _ = make(folder, tmp_path / "a", learning_rate=1e-3)
    spread, _ = make(folder, tmp_path / "b", micro=micro, parts=parts, learning_rate=1e-3)
    assert any(not batch for batch in spread.get_train_dataloader().batch_sampler) == (parts == 6)
    expected = losses(whole)
    assert losses(spread) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]
    assert spread.state.log_history[0]["grad_norm"] == pytest.approx(whole.state.log_history[0]["grad_norm"], rel=1e-4)


def test_a_loss_that_is_no_number_stops_training(folder, tmp_path):
    trainer, items = make(folder, tmp_path)
    items[0].reference[0] = math.nan
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        trainer.train()


def test_a_resumed_training_goes_on_as_one_that_never_stopped(folder, tmp_path):
    def weights(trainer):
        return {name: value for name, value in trainer.model.state_dict().items() if "lora" in name}

    whole, _ = make(folder, tmp_path / "whole", learning_rate=1e-3)
    whole.args.save_strategy, whole.args.save_steps = "steps", 2
    whole.train()
    again, _ = make(folder, tmp_path / "again", learning_rate=1e-3)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.state.log_history[2]["loss"] == again.state.log_history[2]["loss"]
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
