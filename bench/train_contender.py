"""One contender of bench/train.py in a process of its own: trains the KC stage, prints time, peak memory and losses as JSON.

    python bench/train_contender.py kt|trl|llamafactory|gradients JOB.json

Run by bench/train.py; `llamafactory` by the interpreter of LLaMA-Factory's own environment, so kt is imported only where
it is measured. The time is that of training itself, reference included, from the end of the first step on: what a process
does once (imports, first use of every kernel) is nobody's speed.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments(job: dict, micro: int) -> dict:
    """What every contender's training arguments have in common; they are all transformers' own."""
    return {
        "output_dir": job["out"],
        "use_cpu": True,
        "bf16": job["dtype"] == "bfloat16",
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job["batch_pairs"] // micro,
        "max_steps": job["steps"],
        "gradient_checkpointing": job["checkpointing"],
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 42,
        "disable_tqdm": True,
    }


def adapted_model(job: dict):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)


def make_clock():
    """Make a callback that notes time from the end of the first step to the end of training; more may be added to it."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.wall = self.cpu = 0.0

        def begin(self):
            self.wall -= time.perf_counter()
            self.cpu -= time.process_time()

        def end(self):
            self.wall += time.perf_counter()
            self.cpu += time.process_time()

        def on_step_end(self, _args, state, *_rest, **_kwargs):
            if state.global_step == 1:
                self.begin()

        def on_train_end(self, _args, state, *_rest, **_kwargs):
            self.end()
            self.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]

        def result(self) -> dict:
            return {"seconds": self.wall, "cpu_seconds": self.cpu, "peak_mb": peak_mb(), "losses": self.losses}

    return Clock()


def packed_items(job: dict):
    from transformers import AutoTokenizer

    from kt.preference_data import pack_pairs, read_pairs

    return pack_pairs(AutoTokenizer.from_pretrained(job["model"]), read_pairs(job["pairs"]))[0]


def kt(job: dict) -> dict:
    from torch.utils.data import DataLoader
    from transformers import TrainingArguments

    from kt.train_kc import KcTrainer, with_reference

    model, items = adapted_model(job), packed_items(job)[: job["steps"] * job["batch_pairs"] // 3]
    options = arguments(job, job["micro"])
    computing = torch.bfloat16 if options["bf16"] else None
    first, clock = job["batch_pairs"] // 3, make_clock()
    referenced = with_reference(model, items[:first], autocast=computing)
    clock.begin()
    referenced += with_reference(model, items[first:], autocast=computing)
    clock.end()

    class InOrder(KcTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=job["micro"] // 3, collate_fn=self.data_collator)

    trainer = InOrder(
        model, TrainingArguments(**options, remove_unused_columns=False), train_dataset=referenced, callbacks=[clock]
    )
    trainer.train()
    return clock.result()


def trl(job: dict) -> dict:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in Path(job["rendered"]).read_text().splitlines()]

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    options = DPOConfig(
        **arguments(job, job["micro"]), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], beta=0.1, max_length=None
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    clock, rows = make_clock(), Dataset.from_list(rows)
    trainer = InOrder(adapted_model(job), args=options, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
    trainer.train()
    return clock.result()


def llamafactory(job: dict) -> dict:
    """Run LLaMA-Factory's own workflow."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template
    from llamafactory.train.tuner import run_exp

    # The prompts come rendered already: the same tokens for everyone.
    register_template(
        name="rendered",
        format_user=StringFormatter(slots=["{{content}}"]),
        format_assistant=StringFormatter(slots=["{{content}}", {"eos_token"}]),
    )
    shared = arguments(job, job["micro"])
    checkpointing = shared.pop("gradient_checkpointing")
    own = {
        "model_name_or_path": job["model"],
        "adapter_name_or_path": job["adapter"],
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "lora",
        "pref_beta": 0.1,
        "pref_ftx": 0.2,
        "pref_loss": "sigmoid",
        "dataset": "pairs",
        "dataset_dir": job["llamafactory_data"],
        "template": "rendered",
        "cutoff_len": 4096,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": not checkpointing,
        "preprocessing_num_workers": 1,
        "overwrite_cache": True,
    }
    clock = make_clock()
    run_exp({**shared, **own}, callbacks=[clock])
    return clock.result()


def gradients(job: dict) -> dict:
    """Compare kt's loss and gradients of some items with those of one sequence at a time, logits everywhere, no mask."""
    from kt.branch_attention import use_branch_attention
    from kt.preference import kc_loss
    from kt.preference_rows import collate, score_answers

    model, items = adapted_model(job), packed_items(job)[:5]
    with torch.no_grad():  # off the point where B is zero, so that A has a gradient too
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))

    def loss(log_probs, nll, pairs):
        zero = torch.zeros(pairs)
        policy = (log_probs[:1].expand(pairs), log_probs[1:])
        # The reference is off by a little from the policy, so that margins are not zero.
        reference = (policy[0].detach() + 3, policy[1].detach() - 2 + zero)
        return kc_loss(*policy, *reference, nll[:1].expand(pairs)).losses.sum()

    def gradient(score):
        model.zero_grad()
        total = sum(loss(*score(item), len(item.lengths) - 1) for item in items) / 15
        total.backward()
        return total.item(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    theirs = gradient(lambda item: one_by_one(model, item))
    use_branch_attention(model)
    ours = gradient(lambda item: score_answers(model, collate([item.row], [item.lengths])))
    worst = max((a - b).abs().max().item() for a, b in zip(ours[1], theirs[1], strict=True))
    largest = max(b.abs().max().item() for b in theirs[1])
    return {"loss_difference": abs(ours[0] - theirs[0]), "gradient_difference": worst, "largest_gradient": largest}


def one_by_one(model, item):
    """Score each answer of a packed item in a row of its own."""
    row, log_probs, nll = item.row, [], []
    shared = [token for token, branch in zip(row.ids, row.branches, strict=True) if branch == 0]
    targets = iter(row.targets)
    for branch, length in enumerate(item.lengths, start=1):
        own = [token for token, number in zip(row.ids, row.branches, strict=True) if number == branch]
        wanted = torch.tensor([next(targets) for _ in range(length)])
        logits = model(torch.tensor([shared + own]), use_cache=False).logits[0, -length:]
        found = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        log_probs.append(found.sum())
        nll.append(-found.mean())
    return torch.stack(log_probs), torch.stack(nll)


def main() -> None:
    name, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    result = {"kt": kt, "trl": trl, "llamafactory": llamafactory, "gradients": gradients}[name](job)
    print("\nRESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
