"""Branch attention gives what a dense mask gives: values and gradients, grouped heads, windows, several items in a row."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from kt.branch_attention import NAME, branch_mask, use_branch_attention

SIZES = [[5, 4, 1, 6], [3, 2], [7]]
TOKENS = sum(sum(row) for row in SIZES)
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2,
}  # fmt: skip


def make_llama(heads=4, attention="sdpa"):
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_key_value_heads=heads)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention)


def positions():
    """Every branch's positions go on where its item's prefix ends."""
    found = [place for shared, *own in SIZES for place in (*range(shared), *(shared + n for size in own for n in range(size)))]
    return torch.tensor([found])


def run(model):
    """Give logits, and the gradient of all weights."""
    ids = torch.randint(64, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = branch_mask(model, SIZES, ids.device)
    logits = model(input_ids=ids, position_ids=positions(), attention_mask=mask, use_cache=False).logits
    model.zero_grad()
    logits.log_softmax(-1)[..., 0].sum().backward()
    return logits.detach(), [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_equal_a_dense_mask(heads, attention):
    logits, gradients = run(make_llama(heads, attention))
    model = make_llama(heads)
    use_branch_attention(model)
    assert model.config._attn_implementation == NAME
    ours, own = run(model)
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model = make_llama()
    use_branch_attention(model)
    _, plain = run(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, recomputed = run(model.train())
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))


def test_a_window_is_kept_to():
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4)
    model = MistralForCausalLM._from_config(config, attn_implementation="sdpa")
    ids = torch.randint(64, (1, 9), generator=torch.Generator().manual_seed(1))
    plain = model(input_ids=ids).logits[0]
    use_branch_attention(model)
    row = torch.cat([ids[:, :5], ids[:, :3], ids[:, 5:]], dim=1)  # a prefix of five tokens and two branches
    places = torch.tensor([[*range(5), 5, 6, 7, *range(5, 9)]])
    mask = branch_mask(model, [[5, 3, 4]], "cpu")
    ours = model(input_ids=row, position_ids=places, attention_mask=mask, use_cache=False).logits[0]
    torch.testing.assert_close(torch.cat([ours[:5], ours[8:]]), plain, rtol=1e-5, atol=1e-5)


def test_a_model_on_eager_attention_stays_on_it():
    model = make_llama(attention="eager")
    use_branch_attention(model)
    assert model.config._attn_implementation == "eager"
    assert branch_mask(model, SIZES, "cpu").shape == (1, 1, TOKENS, TOKENS)


def test_sequences_without_branches_are_attended_to_as_before():
    model = make_llama().eval()
    ids = torch.randint(5, 64, (2, 9))
    padded = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    options = {"attention_mask": padded, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options)
    use_branch_attention(model)
    assert torch.equal(model.generate(ids, **options), before)


def test_another_attention_refuses_the_sizes():
    model = make_llama()
    use_branch_attention(model)
    mask = branch_mask(model, SIZES, "cpu")
    with pytest.raises(RuntimeError):
        make_llama()(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), attention_mask=mask)


def test_what_is_saved_does_not_ask_for_branch_attention(tmp_path):
    model = make_llama()
    use_branch_attention(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
