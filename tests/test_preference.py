"""The KC loss against numbers made by hand."""

import math

import pytest
import torch

from kt.preference import PLACES, answer_scores, kc_loss, token_log_probs


def test_a_batch_computed_by_hand():
    loss = kc_loss(
        torch.tensor([-10.0, -20.0]),
        torch.tensor([-12.0, -18.0]),
        torch.tensor([-11.0, -20.0]),
        torch.tensor([-12.0, -19.0]),
        torch.tensor([2.0, 4.0]),
        beta=0.1,
        gamma=0.2,
    )
    # margins: 0.1 * ((-10+12) - (-11+12)) = 0.1 and 0.1 * ((-20+18) - (-20+19)) = -0.1
    assert loss.margins.tolist() == pytest.approx([0.1, -0.1], abs=1e-6)
    expected = [math.log(1 + math.exp(-0.1)) + 0.4, math.log(1 + math.exp(0.1)) + 0.8]
    assert loss.losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_at_step_0_the_loss_is_ln_2_plus_gamma_nll():
    chosen, rejected, nll = torch.randn(8) * 50, torch.randn(8) * 50, torch.rand(8) * 9
    losses = kc_loss(chosen, rejected, chosen, rejected, nll, beta=0.1, gamma=0.2).losses
    assert torch.allclose(losses, math.log(2) + 0.2 * nll, atol=1e-5)


def test_the_gradient_of_the_sft_term_is_gamma():
    nll = torch.tensor([2.0, 3.0], requires_grad=True)
    zero = torch.zeros(2)
    kc_loss(zero, zero, zero, zero, nll, gamma=0.2).losses.mean().backward()
    assert nll.grad.tolist() == pytest.approx([0.1, 0.1])


def test_the_gradient_of_the_dpo_term_is_beta_times_the_doubt():
    chosen, rejected = torch.tensor([3.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    zero = torch.zeros(1)
    kc_loss(chosen, rejected, zero, zero, zero, beta=0.1).losses.backward()
    doubt = 1 / (1 + math.exp(0.2))
    assert chosen.grad.item() == pytest.approx(-0.1 * doubt)
    assert rejected.grad.item() == pytest.approx(0.1 * doubt)


def test_sums_and_means_are_of_each_answer_alone():
    scores = answer_scores(torch.tensor([-1.0, -2.0, -6.0, -4.0]), torch.tensor([0, 0, 0, 1]), 2)
    assert scores.log_probs.tolist() == [-9.0, -4.0]
    assert scores.nll_means.tolist() == [3.0, 4.0]


def test_bf16_log_probs_are_summed_in_float32():
    scores = answer_scores(torch.full((1000,), -1.0, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.long), 1)
    assert scores.log_probs.item() == -1000.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_token_log_probs_and_their_gradient_are_those_of_a_softmax(dtype, tolerance):
    torch.manual_seed(0)
    logits = (4 * torch.randn(2 * PLACES + 3, 50)).to(dtype).requires_grad_()
    targets = torch.randint(50, (len(logits),))
    outer = torch.randn(len(logits))
    plain = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours = token_log_probs(logits, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    (wanted,) = torch.autograd.grad(plain, logits, outer)
    (found,) = torch.autograd.grad(ours, logits, outer)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
