"""An item's pairs as one row of tokens: the prompt once, the chosen answer once, each rejected answer beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kt.errors import InputError
from kt.packing import EncodedFact, Row, pack
from kt.preference import AnswerScores, answer_scores


@dataclass(frozen=True)
class PreferenceBatch:
    """Rows padded to one length, and what is scored in them: for every answer token its row, predictor and id.

    `ids` and `positions` are (rows, length), `mask` is (rows, 1, length, length) and true where a token may look.
    `rows`, `sources`, `targets` and `answers` are (answer tokens,): in order of rows, and of answers in each.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    sources: Tensor
    targets: Tensor
    answers: Tensor
    count: int

    def to(self, device: Any) -> "PreferenceBatch":
        """Return the same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "count"}
        return PreferenceBatch(**moved, count=self.count)


def encode_answer(tokenizer: Any, prompt: str, answer: str) -> EncodedFact:
    """Tokenise a rendered prompt and an answer apart, as TRL's prompts that end on a token boundary, and add EOS."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path} has no EOS token: answers trained without one never end")
    # A chat template has written the BOS already; a second one would change every number.
    special = not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))
    start = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    if start and start[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        start = start[:-1]  # some tokenizers close every text; the prompt goes on
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


def collate(rows: Sequence[Row], lengths: Sequence[Sequence[int]], pad: int = 0) -> PreferenceBatch:
    """Pad rows to the longest and build the block mask; `lengths` has each answer's scored tokens, row by row."""
    width = max(len(row.ids) for row in rows)
    per_answer = torch.tensor([length for group in lengths for length in group])
    return PreferenceBatch(
        ids=_padded([row.ids for row in rows], width, pad),
        positions=_padded([row.positions for row in rows], width, 0),
        mask=_block_mask(_padded([row.branches for row in rows], width, -1)),
        rows=torch.tensor([number for number, row in enumerate(rows) for _ in row.sources]),
        sources=torch.tensor([place for row in rows for place in row.sources]),
        targets=torch.tensor([token for row in rows for token in row.targets]),
        answers=torch.repeat_interleave(torch.arange(len(per_answer)), per_answer),
        count=len(per_answer),
    )


def score_answers(model: Any, batch: PreferenceBatch) -> AnswerScores:
    """Score every answer of a batch with a causal language model, making logits only where an answer token is predicted.

    The model itself is called, not its parts: wrappers (PEFT, distributed training) do their work in its forward.
    """
    places = batch.sources.unique()
    output = model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, logits_to_keep=places, use_cache=False
    )
    logits = output.logits[batch.rows, torch.searchsorted(places, batch.sources)]
    log_probs = -functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    return answer_scores(log_probs, batch.answers, batch.count)


def _padded(lists: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    return torch.tensor([[*values, *[fill] * (width - len(values))] for values in lists])


def _block_mask(branches: Tensor) -> Tensor:
    """Let a token see the shared prefix (branch 0) and its own branch, as far as itself; padding is branch -1."""
    width = branches.shape[1]
    looking, seen = branches[:, :, None], branches[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding sees itself only: a row of the mask with nothing to see makes NaN of the whole gradient.
    alone = torch.eye(width, dtype=torch.bool)
    return (((seen == 0) | ((seen == looking) & (seen > 0))) & causal & (looking >= 0) | alone)[:, None]
