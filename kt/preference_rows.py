"""An item's pairs as one row of tokens: the prompt once, the chosen answer once, each rejected answer beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kt.branch_attention import branch_mask
from kt.errors import InputError
from kt.packing import EncodedFact, Row, pack
from kt.preference import AnswerScores, answer_scores, token_log_probs
from kt.template import prompt_tokens


@dataclass(frozen=True)
class PreferenceBatch:
    """Items laid end to end in one row, without padding, and what is scored in them.

    `ids` and `positions` are (1, tokens); `sizes` has for every item the tokens of its shared prefix and then of each
    answer beside it. `sources` (places that predict), `targets` and `answers` are (answer tokens,), answer after answer.
    """

    ids: Tensor
    positions: Tensor
    sizes: list[list[int]]
    sources: Tensor
    targets: Tensor
    answers: Tensor
    count: int

    def to(self, device: Any) -> "PreferenceBatch":
        """Return the same batch on another device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def encode_answer(tokenizer: Any, prompt: str, answer: str) -> EncodedFact:
    """Tokenise a rendered prompt and an answer apart, as TRL's prompts that end on a token boundary, and add EOS."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path} has no EOS token: answers trained without one never end")
    start = prompt_tokens(tokenizer, prompt)
    own = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not start or not own:
        raise InputError(f"{'the prompt' if not start else 'an answer'} has no tokens: {prompt[-40:]!r} {answer[:40]!r}")
    return EncodedFact([*start, *own, tokenizer.eos_token_id], len(start))


def pack_answers(chosen: EncodedFact, rejected: Sequence[EncodedFact]) -> Row:
    """Lay the answers of one prompt into one row, chosen first; what they begin with in common is laid down once."""
    answers = [chosen, *rejected]
    if any(one.ids[: one.start] != chosen.ids[: chosen.start] for one in rejected):
        raise InputError("answers of one row must share their prompt: group the pairs by prompt and chosen answer")
    (row,) = pack(answers, range(len(answers)))
    return row


def collate(rows: Sequence[Row], lengths: Sequence[Sequence[int]]) -> PreferenceBatch:
    """Lay rows end to end; `lengths` has each answer's scored tokens, row by row."""
    starts = accumulate((len(row.ids) for row in rows), initial=0)
    per_answer = torch.tensor([length for group in lengths for length in group])
    return PreferenceBatch(
        ids=torch.tensor([[token for row in rows for token in row.ids]]),
        positions=torch.tensor([[position for row in rows for position in row.positions]]),
        sizes=[[row.branches.count(branch) for branch in range(len(row.facts) + 1)] for row in rows],
        sources=torch.tensor([start + place for row, start in zip(rows, starts, strict=False) for place in row.sources]),
        targets=torch.tensor([token for row in rows for token in row.targets]),
        answers=torch.repeat_interleave(torch.arange(len(per_answer)), per_answer),
        count=len(per_answer),
    )


def score_answers(model: Any, batch: PreferenceBatch) -> AnswerScores:
    """Score every answer of a batch with a causal language model, making logits only where an answer token is predicted.

    The model itself is called, not its parts: wrappers (PEFT, distributed training) do their work in its forward.
    """
    mask = branch_mask(model, batch.sizes, batch.ids.device)
    # A place that predicts the first tokens of several answers is asked for as often: its logits then stand in order.
    output = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=mask,
        logits_to_keep=batch.sources,
        use_cache=False,
    )
    log_probs = token_log_probs(output.logits[0], batch.targets)
    return answer_scores(log_probs, batch.answers, batch.count)
