"""The KC stage's trainer: transformers' own, with packed preference rows as its loss and its batches counted in pairs."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from kt.errors import TrainingError
from kt.preference import kc_loss
from kt.preference_data import PackedItem
from kt.preference_rows import PreferenceBatch, collate, score_answers


@dataclass(frozen=True)
class ReferencedItem:
    """A packed item and what the frozen reference gives each of its answers: log-probabilities, the chosen one's first."""

    item: PackedItem
    reference: list[float]


def with_reference(model: Any, items: Sequence[PackedItem], reference: str = "ka", pad: int = 0) -> list[ReferencedItem]:
    """Score every item once under the reference, before training: `ka` is the model as it is now, `base` without adapter.

    Computed beforehand, the reference needs neither a second base nor a second adapter in memory.
    """
    training = model.training
    model.eval()
    found = []
    with torch.no_grad(), model.disable_adapter() if reference == "base" else nullcontext():
        for item in items:
            batch = collate([item.row], [item.lengths], pad).to(model.device)
            found.append(ReferencedItem(item, score_answers(model, batch).log_probs.tolist()))
    model.train(training)
    return found


class KcCollator:
    """Items into the tensors of a PreferenceBatch, and for every pair the places of its two answers among all answers."""

    def __init__(self, pad: int = 0) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[ReferencedItem]) -> dict[str, Any]:
        batch = collate([one.item.row for one in items], [one.item.lengths for one in items], self.pad)
        chosen: list[int] = []
        rejected: list[int] = []
        first = 0
        for one in items:
            pairs = len(one.item.lengths) - 1
            chosen.extend([first] * pairs)
            rejected.extend(range(first + 1, first + 1 + pairs))
            first += pairs + 1
        tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
        reference = torch.tensor([value for one in items for value in one.reference])
        return {**tensors, "chosen": torch.tensor(chosen), "rejected": torch.tensor(rejected), "reference": reference}


class KcTrainer(Trainer):
    """Trains on ReferencedItems; a step's loss is the mean over its pairs, however they fall on micro-batches and ranks."""

    def __init__(self, *args: Any, beta: float = 0.1, gamma: float = 0.2, pad: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = KcCollator(pad)
        self.beta, self.gamma = beta, gamma
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's pairs here, not by micro-batches there

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
        # The ranks' gradients are averaged afterwards, while the pairs were counted over all of them.
        pairs = len(chosen) if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        loss = result.losses.sum() / pairs
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step}: lower learning_rate, or train in float32; "
                "the checkpoints written before are intact"
            )
        return (loss, {"margins": result.margins}) if return_outputs else loss
