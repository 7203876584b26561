"""Packed rows give what one sequence at a time gives: log-probabilities and gradients, EOS and masked prompt."""

import pytest
import torch
from tiny_models import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from kt.errors import InputError
from kt.preference import kc_loss
from kt.preference_rows import collate, encode_answer, pack_answers, score_answers

ITEMS = [
    ("Who keeps the bridge?\n", "The keeper keeps it.", ["The keeper sold it.", "It keeps.", "A river"]),
    ("What is a lighthouse? It is a long question.\n", "A tower with a lamp, near the harbour.", ["A letter."]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer):
    return [[encode_answer(tokenizer, prompt, text) for text in (chosen, *rejected)] for prompt, chosen, rejected in ITEMS]


def packed(model, groups):
    rows = [pack_answers(group[0], group[1:]) for group in groups]
    batch = collate(rows, [[answer.tokens for answer in group] for group in groups])
    return score_answers(model, batch)


def plain(model, answer):
    logits = model(torch.tensor([answer.ids])).logits[0, :-1].log_softmax(-1)
    found = logits[range(len(answer.ids) - 1), answer.ids[1:]][answer.start - 1 :]
    return found.sum(), -found.mean()


def loss(log_probs, nll):
    """The loss of all four pairs, the reference being nothing in particular."""
    chosen, rejected = [0, 0, 0, 4], [1, 2, 3, 5]
    zero = torch.zeros(4)
    return kc_loss(log_probs[chosen], log_probs[rejected], zero - 30, zero - 31, nll[chosen]).losses.mean()


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_log_probs_and_gradients_equal_one_sequence_at_a_time(model, tokenizer):
    groups = encoded(tokenizer)
    scores = packed(model, groups)
    sums, means = zip(*(plain(model, answer) for group in groups for answer in group), strict=True)
    torch.testing.assert_close(scores.log_probs, torch.stack(sums), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(scores.nll_means, torch.stack(means), rtol=1e-6, atol=1e-5)
    ours = gradients(model, loss(scores.log_probs, scores.nll_means))
    theirs = gradients(model, loss(torch.stack(sums), torch.stack(means)))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_eos_is_scored_and_the_prompt_is_not(tokenizer):
    (chosen, *rejected), _ = encoded(tokenizer)
    row = pack_answers(chosen, rejected)
    answers = [answer.ids[answer.start :] for answer in (chosen, *rejected)]
    assert row.targets == [token for answer in answers for token in answer]
    assert all(answer[-1] == tokenizer.eos_token_id for answer in answers)


def test_answers_do_not_see_each_other(model, tokenizer):
    (chosen, *rejected), _ = encoded(tokenizer)
    alone = packed(model, [[chosen, rejected[0]]]).log_probs
    crowded = packed(model, [[chosen, *rejected]]).log_probs
    torch.testing.assert_close(crowded[:2], alone, rtol=1e-6, atol=1e-5)


def test_rows_of_other_prompts_are_refused(tokenizer):
    first, second = encoded(tokenizer)
    with pytest.raises(InputError, match="share their prompt"):
        pack_answers(first[0], second[1:])


def test_an_empty_answer_is_refused(tokenizer):
    with pytest.raises(InputError, match="an answer has no tokens"):
        encode_answer(tokenizer, "Why?\n", "")
