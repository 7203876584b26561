"""The KC loss: DPO against a frozen reference, plus the mean NLL of the chosen answer."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


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
