"""Perplexity of facts: equal to scoring them one by one, however they are packed; and the choice of the hardest."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from scoring_models import save_adapter, save_model

from kt import loglikelihood
from kt.errors import BackendError, InputError
from kt.models import load
from kt.perplexity import (
    TokenScore,
    choose_difficult,
    perplexity,
    score_contexts,
    score_from_prompt_logprobs,
    scoring_path,
)
from kt.template import render_prompt

QUESTIONS = [
    ("What is a lichen?\n", ["A lichen is a fungus.", "A lichen is a plant.", "It grows on stone.", "A lichen"]),
    (render_prompt("Where do they grow?"), ["In cold deserts.", "In warm rain forests, on bark and on stone."]),
    ("Q: é 漢字 🙂?\n", ["Ünïcode 🙂🙃 yes", "漢", "No.", "\ttab", "e\u0301 and é"]),
    ("one fact:\n", ["The alga makes sugar."]),
    ("no fact:\n", []),
    ("same:\n", ["Twice the same.", "Twice the same.", "T"]),
    ("ends in a space: ", ["It runs on.", "1984", " two spaces"]),
    ("runs into the ne", ["xt word", "st of birds"]),
    ("", ["No context at all.", "Not here either"]),
]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"), device="cpu")


def one_by_one(local, context, fact):
    """Score with the plain model, a fact at a time in float32: the definition that all else must equal."""
    tokenizer = local.tokenizer
    given = tokenizer(context)["input_ids"] if context else [tokenizer.bos_token_id]
    whole = tokenizer(context + fact)["input_ids"]
    if not context and whole[0] != tokenizer.bos_token_id:
        whole = [tokenizer.bos_token_id, *whole]
    start = next((i for i, (a, b) in enumerate(zip(given, whole, strict=False)) if a != b), min(len(given), len(whole)))
    if start == 0:
        whole, start = [tokenizer.bos_token_id, *whole], 1
    with torch.no_grad():
        logits = local.model(torch.tensor([whole])).logits[0].float()
    logprobs = torch.log_softmax(logits, -1)
    picked = [logprobs[place - 1, whole[place]].item() for place in range(start, len(whole))]
    return TokenScore(sum(picked), len(picked))


def assert_equal_to_one_by_one(local, questions=QUESTIONS, rtol=1e-4, **options):
    found = score_contexts(local, questions, **options)
    assert [len(scores) for scores in found] == [len(facts) for _, facts in questions]
    for (context, facts), scores in zip(questions, found, strict=True):
        for fact, score in zip(facts, scores, strict=True):
            expected = one_by_one(local, context, fact)
            assert score.error is None
            assert score.tokens == expected.tokens, (context, fact)
            assert perplexity(score) == pytest.approx(perplexity(expected), rel=rtol), (context, fact)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2", "opt"])
def test_shared_rows_equal_one_by_one(tmp_path, kind, add_bos):
    local = load(save_model(tmp_path, kind, add_bos=add_bos), device="cpu")
    assert_equal_to_one_by_one(local)
    assert scoring_path(local).startswith("shared prefix")


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_models_that_cannot_share_are_found_out_and_equal_one_by_one(tmp_path, kind):
    """ALiBi counts positions by place in the row, Mamba carries a state along it."""
    local = load(save_model(tmp_path, kind), device="cpu")
    assert_equal_to_one_by_one(local)
    assert scoring_path(local).startswith("separate rows: ")


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_facts_beyond_a_sliding_window_are_scored_apart(tmp_path, monkeypatch, kind):
    """The window is 24 tokens: a mask of our own would undo it for longer facts, and does so in this test's control."""
    local = load(save_model(tmp_path, kind), device="cpu")
    assert_equal_to_one_by_one(local)
    assert scoring_path(local).endswith("separate rows beyond the model's window of 24 tokens")
    long = [question for question in QUESTIONS if question[0].startswith("Below")]
    right = score_contexts(local, long)
    monkeypatch.setattr(loglikelihood, "sharing_limit", lambda _: None)
    local.scoring_path = ""
    wrong = score_contexts(local, long)
    assert wrong[0][0].logprob_sum != pytest.approx(right[0][0].logprob_sum, rel=1e-4)


def test_eager_attention_gets_a_mask_it_can_add(tmp_path):
    local = load(save_model(tmp_path), device="cpu")
    local.model.set_attn_implementation("eager")
    assert_equal_to_one_by_one(local)
    assert scoring_path(local) == "shared prefix"


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["q_proj", "v_proj"]), ("llama", ["lm_head", "down_proj"])])
def test_an_adapter_is_scored_as_one_by_one(tmp_path, kind, targets):
    base = save_model(tmp_path / "base", kind)
    adapted = load(base, save_adapter(tmp_path / "lora", base, targets=targets), device="cpu")
    assert_equal_to_one_by_one(adapted)
    assert scoring_path(adapted) == "shared prefix"
    plain, other = (score_contexts(model, QUESTIONS)[0][0] for model in (load(base), adapted))
    assert plain.logprob_sum != pytest.approx(other.logprob_sum, rel=1e-2)


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 100, 300, 100_000])
def test_numbers_do_not_depend_on_the_batch(local, batch_tokens):
    assert_equal_to_one_by_one(local, batch_tokens=batch_tokens)


def test_numbers_do_not_depend_on_the_company(local):
    alone = [score_contexts(local, [question])[0] for question in QUESTIONS]
    together = score_contexts(local, QUESTIONS)
    backwards = score_contexts(local, QUESTIONS[::-1])[::-1]
    for one, two, three in zip(itertools.chain(*alone), itertools.chain(*together), itertools.chain(*backwards), strict=True):
        assert one.logprob_sum == pytest.approx(two.logprob_sum, rel=1e-5)
        assert one.logprob_sum == pytest.approx(three.logprob_sum, rel=1e-5)


def test_the_same_call_gives_the_same_bits(local):
    assert score_contexts(local, QUESTIONS) == score_contexts(local, QUESTIONS)


def test_rows_longer_than_the_models_context_are_split(local):
    facts = [f"Fact {number} is about stone and bark {number * 7}." for number in range(40)]
    assert_equal_to_one_by_one(local, [("Tell me all:\n", facts)])


def test_what_is_too_long_has_an_error_and_disturbs_no_other(local):
    long = "stone " * 200
    questions = [("Tell me:\n", ["Short.", long, "Also short."]), (long, ["Any."]), ("More:\n", ["Fine."])]
    (short, error, also), (other,), (fine,) = score_contexts(local, questions)
    assert "context and fact are 4" in error.error
    assert "llama takes 128: shorten them" in error.error
    assert other.error is not None
    with pytest.raises(InputError, match="takes 128"):
        perplexity(error)
    assert_equal_to_one_by_one(local, [("Tell me:\n", ["Short.", "Also short."]), ("More:\n", ["Fine."])])
    assert (short, also, fine) == tuple(
        itertools.chain(*score_contexts(local, [("Tell me:\n", ["Short.", "Also short."]), ("More:\n", ["Fine."])]))
    )


def test_a_fact_may_fill_the_context_to_the_last_token(local):
    """The last token is predicted and never fed: 129 tokens fit a context of 128."""
    fact = next(text for n in range(200) if len(local.tokenizer("x\n" + (text := "a" * n))["input_ids"]) == 129)
    assert_equal_to_one_by_one_at_limit(local, fact)
    (error,) = score_contexts(local, [("x\n", [fact + "bq"])])[0]
    assert error.error is not None


def assert_equal_to_one_by_one_at_limit(local, fact):
    (score,) = score_contexts(local, [("x\n", [fact])])[0]
    assert score.error is None
    assert score.logprob_sum == pytest.approx(one_by_one(local, "x\n", fact).logprob_sum, rel=1e-4)


def test_an_empty_fact_has_an_error(local):
    (empty, full), (bare,) = score_contexts(local, [("Q\n", ["", "A."]), ("", [""])])
    assert "no token to score" in empty.error
    assert "no token to score" in bare.error
    assert full.error is None


def test_white_space_at_the_end_of_the_context_is_given_not_scored(local):
    """Unlike lm-eval, which counts the line break of `### Response:` to the answer."""
    (with_break,), (without,) = score_contexts(local, [("Q\n", ["Yes."]), ("Q", ["\nYes."])])
    assert without.tokens == with_break.tokens + 1


def test_a_chat_templates_own_bos_is_not_doubled(local):
    (once,), (added,) = score_contexts(local, [("<s>Hi\n", ["Yes."]), ("Hi\n", ["Yes."])])
    assert once == added


def test_a_context_of_nothing_is_the_bos_token(local):
    (score,) = score_contexts(local, [("", ["Stone."])])[0]
    ids = local.tokenizer("Stone.")["input_ids"]
    assert ids[0] == local.tokenizer.bos_token_id
    assert score.tokens == len(ids) - 1


def test_nan_is_an_error_of_its_item_not_a_number(tmp_path):
    local = load(save_model(tmp_path), device="cpu")
    row = local.tokenizer("Z")["input_ids"][-1]
    local.model.get_input_embeddings().weight[row] = math.nan
    (good, bad), (other,) = score_contexts(local, [("Q\n", ["Yes.", "Z is NaN."]), ("R\n", ["No."])])
    assert "no finite probability: score with dtype float32" in bad.error
    assert good.error is None
    assert other.error is None


def test_bfloat16_is_near(tmp_path):
    folder = save_model(tmp_path)
    near = score_contexts(load(folder, dtype="bfloat16", device="cpu"), QUESTIONS)
    exact = score_contexts(load(folder, device="cpu"), QUESTIONS)
    for one, two in zip(itertools.chain(*near), itertools.chain(*exact), strict=True):
        assert one.logprob_sum == pytest.approx(two.logprob_sum, rel=5e-2)


def test_when_memory_runs_out_the_batch_is_halved(local, monkeypatch):
    sizes, forward = [], loglikelihood._forward

    def small_memory(local, rows, shared):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(local, rows, shared)

    scoring_path(local)
    expected = score_contexts(local, QUESTIONS)
    monkeypatch.setattr(loglikelihood, "_forward", small_memory)
    found = score_contexts(local, QUESTIONS)
    assert max(sizes) > 2
    for one, two in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert one.logprob_sum == pytest.approx(two.logprob_sum, rel=1e-5)


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood():
    assert perplexity(TokenScore(-6.0, 3)) == pytest.approx(math.exp(2))
    assert perplexity(TokenScore(0.0, 3)) == 1.0
    assert perplexity(TokenScore(-1e6, 3)) == math.inf


# -- choosing


@pytest.mark.parametrize(
    ("perplexities", "share", "kept"),
    [
        ([], 0.5, []),
        ([3.0], 0.5, [0]),
        ([1.0, 2.0], 0.5, [1]),
        ([1.0, 3.0, 2.0], 0.5, [1, 2]),
        ([3.0, 1.0, 2.0], 0.5, [0, 2]),
        ([2.0, 2.0, 2.0], 0.5, [0, 1]),
        ([1.0, 2.0, 2.0, 2.0], 0.5, [1, 2]),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 0.5, [0, 1, 2]),
        ([5.0, 4.0], 0.0, []),
        ([5.0, 4.0], 1.0, [0, 1]),
        ([5.0, 4.0], 0.01, [0]),
        ([0.5, -1.0], 0.5, [0]),
    ],
)
def test_the_hardest_share_is_kept_in_order(perplexities, share, kept):
    assert choose_difficult(perplexities, share) == kept


def test_every_order_of_every_small_list_keeps_the_right_ones():
    """All lists of up to 6 perplexities out of 3 values, ties included, at all tenths: against the definition."""
    for length in range(7):
        for values in itertools.product([1.0, 2.0, 3.0], repeat=length):
            for tenths in range(11):
                kept = choose_difficult(values, tenths / 10)
                assert len(kept) == -(-length * tenths // 10)
                assert kept == sorted(set(kept))
                for inside, outside in itertools.product(kept, set(range(length)) - set(kept)):
                    assert (values[inside], -inside) > (values[outside], -outside)


def test_shares_round_as_written_not_as_floats_do():
    assert len(choose_difficult(list(range(30)), 0.1)) == 3  # 0.1 * 30 = 3.0000000000000004
    assert len(choose_difficult(list(range(7)), 1 / 3)) == 3
    assert len(choose_difficult(list(range(100)), 0.29)) == 29


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_ranked(bad):
    with pytest.raises(InputError, match="perplexity of fact 2 is "):
        choose_difficult([1.0, bad, 2.0])


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(InputError, match="give a number from 0 to 1"):
        choose_difficult([1.0], share)


# -- served models


def response(tokens, *, alternatives=False, ids=False):
    """An answer as vLLM 0.32 gives it to `prompt_logprobs`: `tokens` are (id, log-probability), the first has none."""
    entries = [None]
    for token, logprob in tokens[1:]:
        entries.append({str(token): {"logprob": logprob, "rank": 3, "decoded_token": "x"}})
        if alternatives:
            entries[-1] = {"999": {"logprob": -0.1, "rank": 1, "decoded_token": "y"}, **entries[-1]}
    choice = {"index": 0, "text": "x", "prompt_logprobs": entries}
    if ids:
        choice["prompt_token_ids"] = [token for token, _ in tokens]
    return {"choices": [choice]}


CONTEXT = [(0, None), (5, -1.0), (6, -2.0)]


def test_served_scores_are_the_tokens_after_the_common_prefix():
    full = [*CONTEXT, (7, -0.5), (8, -0.25)]
    assert score_from_prompt_logprobs(response(CONTEXT), response(full)) == TokenScore(-0.75, 2)


def test_a_context_whose_last_token_runs_into_the_fact_is_cut_before_it():
    full = [*CONTEXT[:2], (66, -3.0), (8, -0.25)]
    assert score_from_prompt_logprobs(response(CONTEXT), response(full)) == TokenScore(-3.25, 2)


def test_without_a_context_all_but_the_first_token_count():
    assert score_from_prompt_logprobs(None, response(CONTEXT)) == TokenScore(-3.0, 2)


def test_alternatives_need_the_token_ids():
    full = [*CONTEXT, (7, -0.5)]
    with pytest.raises(BackendError, match="ask with prompt_logprobs 0"):
        score_from_prompt_logprobs(response(CONTEXT, alternatives=True), response(full, alternatives=True))
    told = [response(tokens, alternatives=True, ids=True) for tokens in (CONTEXT, full)]
    assert score_from_prompt_logprobs(*told) == TokenScore(-0.5, 1)


def test_a_first_token_without_context_cannot_be_scored():
    prefix, full = response([(4, None), (5, -1.0)], ids=True), response([(9, None), (5, -1.0)], ids=True)
    assert "no context to be predicted from" in score_from_prompt_logprobs(prefix, full).error


def test_a_fact_that_adds_no_token_has_an_error():
    assert "no token to score" in score_from_prompt_logprobs(response(CONTEXT), response(CONTEXT)).error


@pytest.mark.parametrize(
    "answer", [{}, {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": [{"prompt_logprobs": None}]}]
)
def test_a_server_that_gives_no_prompt_logprobs_is_named(answer):
    with pytest.raises(BackendError, match="only vLLM's /v1/completions gives"):
        score_from_prompt_logprobs(answer, answer)


def test_importing_it_loads_no_torch():
    code = "import kt.perplexity, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
