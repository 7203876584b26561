"""The KC stage's trainer: transformers' own, with packed preference rows as its loss and its batches counted in pairs."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer

from kt.branch_attention import use_branch_attention
from kt.errors import TrainingError
from kt.pair_batches import PairBatches, PairLoader
from kt.preference import kc_loss
from kt.preference_data import PackedItem
from kt.preference_rows import PreferenceBatch, collate, score_answers


@dataclass(frozen=True)
class ReferencedItem:
    """A packed item and what the frozen reference gives each of its answers: log-probabilities, the chosen one's first."""

    item: PackedItem
    reference: list[float]


def with_reference(
    model: Any, items: Sequence[PackedItem], reference: str = "ka", autocast: torch.dtype | None = None
) -> list[ReferencedItem]:
    """Score every item once under the reference, before training: `ka` is the model as it is now, `base` without adapter.

    Computed beforehand, the reference needs neither a second base nor a second adapter in memory. `autocast` is the dtype
    that the trainer computes in (bfloat16 under `bf16`): with another one, the policy would be off its reference from the
    start, by 0.1 to 0.3 an answer.
    """
    use_branch_attention(model)
    training = model.training
    model.eval()
    found = []
    computing = torch.autocast(model.device.type, autocast, enabled=autocast is not None)
    with torch.no_grad(), computing, model.disable_adapter() if reference == "base" else nullcontext():
        for item in items:
            batch = collate([item.row], [item.lengths]).to(model.device)
            found.append(ReferencedItem(item, score_answers(model, batch).log_probs.tolist()))
    model.train(training)
    return found


class KcCollator:
    """Items into the tensors of a PreferenceBatch; for every pair the places of its answers, and its aspect's number.

    No items become the row of `spare` without any pair: processes that train together must all run the model.
    """

    def __init__(self, aspects: Sequence[str] = (), spare: ReferencedItem | None = None) -> None:
        self.aspects = list(aspects)
        self.spare = spare

    def __call__(self, items: Sequence[ReferencedItem]) -> dict[str, Any]:
        rows = items or [cast(ReferencedItem, self.spare)]
        batch = collate([one.item.row for one in rows], [one.item.lengths for one in rows])
        chosen: list[int] = []
        rejected: list[int] = []
        aspects: list[int] = []
        first = 0
        for one in items:
            pairs = len(one.item.lengths) - 1
            chosen.extend([first] * pairs)
            rejected.extend(range(first + 1, first + 1 + pairs))
            aspects.extend(self.aspects.index(aspect) if self.aspects else 0 for aspect in one.item.aspects)
            first += pairs + 1
        tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
        reference = torch.tensor([value for one in rows for value in one.reference])
        places = {"chosen": chosen, "rejected": rejected, "aspects": aspects}
        return {**tensors, **{name: torch.tensor(at, dtype=torch.long) for name, at in places.items()}, "reference": reference}


class KcTrainer(Trainer):
    """Trains on ReferencedItems; a step's loss is the mean over its pairs, however they fall on micro-batches and ranks.

    A step has, on average, per_device_train_batch_size x gradient_accumulation_steps x processes pairs, in whole items (see
    PairBatches). The log has, besides the loss, the mean margin and the share of pairs
    whose chosen answer wins (`accuracy/ASPECT`).
    """

    def __init__(self, *args: Any, beta: float = 0.1, gamma: float = 0.2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.items: Sequence[ReferencedItem] = cast("Sequence[ReferencedItem]", self.train_dataset)
        self.aspects = sorted({aspect for one in self.items for aspect in one.item.aspects})
        self.data_collator = KcCollator(self.aspects, min(self.items, key=lambda one: len(one.item.row.ids)))
        self.beta, self.gamma = beta, gamma
        use_branch_attention(self.model)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's pairs here, not by micro-batches there
        self._tally = self._no_tally()

    def get_train_dataloader(self) -> PairLoader:
        """Return this rank's micro-batches of steps counted in pairs: accelerate can only share batches of equal size."""
        sizes = [len(one.item.lengths) - 1 for one in self.items]
        ranks, rank = self.args.world_size, self.args.process_index
        pairs, parts = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        batches = PairBatches(sizes, pairs, self.args.seed, rank, ranks, parts)
        return PairLoader(cast(Any, self.items), batch_sampler=batches, collate_fn=self.data_collator)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        pairs = torch.tensor(sum(len(batch["chosen"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(pairs).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the micro-batch's share of the step's mean loss; a loss that is no number ends the training."""
        chosen, rejected, reference = inputs["chosen"], inputs["rejected"], inputs["reference"]
        scores = score_answers(model, PreferenceBatch(**{f.name: inputs[f.name] for f in fields(PreferenceBatch)}))
        policy, nll = scores.log_probs, scores.nll_means
        pair = (policy[chosen], policy[rejected], reference[chosen], reference[rejected], nll[chosen])
        result = kc_loss(*pair, self.beta, self.gamma)
        self._count(inputs["aspects"], result.margins)
        # The ranks' gradients are averaged afterwards, while the pairs were counted over all of them.
        pairs = len(chosen) if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        loss = result.losses.sum() / pairs
        if not torch.isfinite(loss):
            raise TrainingError(not_a_number(loss.item(), self.state.global_step))
        return (loss, {"margins": result.margins}) if return_outputs else loss

    def _no_tally(self) -> Tensor:
        """For every aspect: pairs, pairs won by the chosen answer, sum of margins."""
        return torch.zeros(len(self.aspects), 3, device=self.args.device)

    def _count(self, aspects: Tensor, margins: Tensor) -> None:
        seen = torch.stack([torch.ones_like(margins), (margins > 0).float(), margins], dim=1)
        self._tally.index_add_(0, aspects, seen.to(self._tally))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was counted since the last line to those that have a loss."""
        if "loss" in logs:
            tally = self.accelerator.reduce(self._tally, "sum").tolist()
            pairs = sum(row[0] for row in tally)
            if pairs:
                logs["margin"] = sum(row[2] for row in tally) / pairs
                logs |= {f"accuracy/{a}": row[1] / row[0] for a, row in zip(self.aspects, tally, strict=True) if row[0]}
            self._tally = self._no_tally()
        super().log(logs, *args, **kwargs)


def not_a_number(loss: float, step: int) -> str:
    """Say that the loss is no number any more, and what to do."""
    return (
        f"the loss is {loss} at step {step}: lower learning_rate, or train in float32;"
        " the checkpoints written before are intact"
    )
