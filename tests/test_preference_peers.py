"""The KC loss beside TRL's own trainer (where the two mean the same) on one model and batch."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from kt.preference import kc_loss
from kt.preference_rows import collate, encode_answer, pack_answers, score_answers

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
