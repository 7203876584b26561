"""The KC loss beside TRL's own trainer (where the two mean the same): one batch, and fifty steps."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import make_llama
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from kt.preference import kc_loss
from kt.preference_data import pack_pairs
from kt.preference_rows import collate, encode_answer, pack_answers, score_answers
from kt.template import render_prompt
from kt.train_kc import KcTrainer, with_reference

PAIR = {"prompt": "Who keeps the bridge?\n", "chosen": "The keeper keeps it.", "rejected": "A sailor sold it."}


@pytest.fixture
def made(tmp_path):
    """A trainer of TRL's on an adapter, which is then moved off its frozen reference."""
    folder = make_llama(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=16, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1, "report_to": [], "bf16": False}
    args = DPOConfig(
        str(tmp_path / "out"), use_cpu=True, per_device_train_batch_size=1, gradient_checkpointing=False, **options
    )
    trainer = DPOTrainer(model, args=args, train_dataset=Dataset.from_list([PAIR]), processing_class=tokenizer)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if ".default." in name:
                weight += 0.05 * torch.randn_like(weight)
    return trainer, tokenizer


def ours(model, tokenizer):
    chosen, rejected = (encode_answer(tokenizer, PAIR["prompt"], PAIR[key]) for key in ("chosen", "rejected"))
    batch = collate([pack_answers(chosen, [rejected])], [[chosen.tokens, rejected.tokens]])
    policy = score_answers(model, batch)
    with torch.no_grad():
        model.set_adapter("ref")
        reference = score_answers(model, batch)
        model.set_adapter("default")
    (chosen_log_prob, rejected_log_prob), (nll, _) = policy.log_probs.split(1), policy.nll_means.split(1)
    return kc_loss(chosen_log_prob, rejected_log_prob, *reference.log_probs.split(1), nll)


def test_a_pair_has_the_loss_that_trl_gives_it(made):
    trainer, tokenizer = made
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), inputs)
    loss = ours(trainer.model, tokenizer)
    assert loss.margins.abs().item() > 0.001, "the policy has not moved: the margin would go untested"
    torch.testing.assert_close(loss.losses.mean(), theirs, rtol=0, atol=1e-5)


def adapted(folder, adapter):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def shared_arguments(out):
    """Arguments of both trainers: one item's three pairs make a step, in order, each pair a micro-batch of TRL's."""
    return {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": [], "learning_rate": 1e-3, "max_steps": 50,
        "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "per_device_train_batch_size": 1,
    }  # fmt: skip


def logged(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_fifty_steps_have_the_losses_that_trl_gives_them(tmp_path):
    folder, adapter = make_llama(tmp_path / "llama"), tmp_path / "adapter"
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=16, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(adapter)
    questions = [
        {"prompt": f"Who keeps bridge {n}?", "chosen": f"The keeper keeps it, with {n} boats.", "rejected": rejected}
        for n in range(10)
        for rejected in ("A sailor sold it.", "Keeps it.", f"It keeps with {n} boats, the keeper.")
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = [{**row, "prompt": render_prompt(row["prompt"])} for row in questions]

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    args = DPOConfig(
        **shared_arguments(tmp_path / "trl"), gradient_accumulation_steps=3, beta=0.1,
        loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2],
    )  # fmt: skip
    rows = Dataset.from_list(rendered)
    theirs = logged(InOrder(adapted(folder, adapter), args=args, train_dataset=rows, processing_class=tokenizer))

    class ItemsInOrder(KcTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    model = adapted(folder, adapter)
    pairs = [{**row, "id": str(n), "aspect": "a"} for n, row in enumerate(questions)]
    items = with_reference(model, pack_pairs(tokenizer, pairs)[0])
    options = TrainingArguments(**shared_arguments(tmp_path / "kt"), remove_unused_columns=False)
    ours = logged(ItemsInOrder(model, options, train_dataset=items))
    assert len(ours) == len(theirs) == 50
    assert ours[0] - ours[-1] > 0.1, "nothing was learned: the losses would go untested"
    assert ours == pytest.approx(theirs, abs=1e-3)
