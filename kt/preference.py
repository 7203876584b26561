"""The KC loss: DPO against a frozen reference, plus the mean NLL of the chosen answer."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Places whose logits are float32 at a time: 128 x 12k words stay in a CPU's cache, 128 x 128k are 64 MB.
PLACES = 128


class KcLoss(NamedTuple):
    """Per-pair losses to be averaged over the batch, and the margins by which chosen beats rejected (no gradient)."""

    losses: Tensor
    margins: Tensor


class AnswerScores(NamedTuple):
    """For every answer, the sum of its tokens' log-probabilities and their mean NLL, each of shape (answers,)."""

    log_probs: Tensor
    nll_means: Tensor


def kc_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_nll_mean: Tensor,
    beta: float = 0.1,
    gamma: float = 0.2,
) -> KcLoss:
    """Return for every pair -log σ(margin) + γ · NLL(y_w).

    margin = β [(log π(y_w) - log π(y_l)) - (log π_ref(y_w) - log π_ref(y_l))]

    All tensors have the shape (pairs,). The first four are log-probabilities summed over the answer's tokens, EOS
    included and the prompt not; `chosen_nll_mean` is the mean over the tokens of that one chosen answer, so that the
    loss does not depend on which pairs share a batch. The batch's loss is the mean of `losses`.
    Source: Lyu et al., KnowTuning, EMNLP 2024 (arXiv 2402.11176); the DPO term is Rafailov et al. 2023, equation 7.
    """
    margins = beta * ((policy_chosen - policy_rejected) - (reference_chosen - reference_rejected))
    return KcLoss(-functional.logsigmoid(margins) + gamma * chosen_nll_mean, margins.detach())


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the float32 log-probability of each target, shape (tokens,), under logits of shape (tokens, vocabulary).

    As cross_entropy gives it, but float32 copies of all logits never stand in memory at once, in neither direction.
    """
    found: Tensor = _TokenLogProbs.apply(logits, targets)
    return found


def answer_scores(token_log_probs: Tensor, answers: Tensor, count: int) -> AnswerScores:
    """Sum and average token log-probabilities by answer.

    `token_log_probs` has the shape (tokens,) and holds answer tokens only; `answers`, of the same shape, says which of
    the `count` answers each belongs to. Every answer needs a token: at the least its EOS.
    """
    # float32 whatever the model's precision: a sum of hundreds of bf16 terms would lose the margin.
    terms = token_log_probs.float()
    sums = torch.zeros(count, device=terms.device).index_add(0, answers, terms)
    lengths = torch.bincount(answers, minlength=count)
    return AnswerScores(sums, -sums / lengths)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        pieces = zip(logits.split(PLACES), targets.split(PLACES), strict=True)
        found = [-functional.cross_entropy(piece.float(), target, reduction="none") for piece, target in pieces]
        log_probs = torch.cat(found)
        # log of the sum over the vocabulary: what the target's logit has above its log-probability.
        normalisers = logits.gather(1, targets[:, None])[:, 0].float() - log_probs
        ctx.save_for_backward(logits, targets, normalisers)
        return log_probs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Take softmax from one-hot, times the gradient, piece by piece."""
        logits, targets, normalisers = ctx.saved_tensors
        result = torch.empty_like(logits)
        pieces = (
            tensor.split(PLACES) for tensor in (result, logits, targets[:, None], normalisers[:, None], gradient[:, None])
        )
        for into, piece, target, normaliser, outer in zip(*pieces, strict=True):
            probabilities = (piece.float() - normaliser).exp_()
            into.copy_(probabilities.mul_(-outer).scatter_add_(1, target, outer))
        return result, None
