"""Run by LLaMA-Factory's own interpreter: its trainer's loss and log-probabilities of one batch of pairs, as JSON.

    python tests/llamafactory_peer.py MODEL ADAPTER DATASET_DIR OUT

DATASET_DIR holds a ranking data set "pairs" whose prompts are rendered already. The reference is the model without adapter.
"""

import json
import sys

import torch
from llamafactory.data import PairwiseDataCollatorWithPadding, get_dataset, get_template_and_fix_tokenizer
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.template import register_template
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.dpo.trainer import CustomDPOTrainer


def main() -> None:
    model_path, adapter, data, out = sys.argv[1:]
    register_template(
        name="rendered",
        format_user=StringFormatter(slots=["{{content}}"]),
        format_assistant=StringFormatter(slots=["{{content}}", {"eos_token"}]),
    )
    options = {
        "model_name_or_path": model_path, "adapter_name_or_path": adapter, "stage": "dpo", "do_train": True,
        "finetuning_type": "lora", "pref_beta": 0.1, "pref_ftx": 0.2, "pref_loss": "sigmoid", "dataset": "pairs",
        "dataset_dir": data, "template": "rendered", "output_dir": out, "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 4, "disable_shuffling": True, "overwrite_cache": True,
    }  # fmt: skip
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(options)
    loaded = load_tokenizer(model_args)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="rm", **loaded)
    model = load_model(tokenizer, model_args, finetuning_args, is_trainable=True)
    collator = PairwiseDataCollatorWithPadding(template=template, model=model, pad_to_multiple_of=8, **loaded)
    trainer = CustomDPOTrainer(
        model=model,
        ref_model=None,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        **rows,
        **loaded,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        scores = trainer.concatenated_forward(trainer.model, batch.copy())
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    gradient = {name: weight.grad.norm().item() for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    numbers = {key: scores[key].tolist() for key in ("chosen_logps", "rejected_logps", "chosen_logps_avg")}
    print("\nRESULT " + json.dumps({"loss": loss.item(), "gradient_norms": gradient, **numbers}))


if __name__ == "__main__":
    main()
