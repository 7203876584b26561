"""Attention over rows that branch: every branch sees its row's shared prefix and itself, and no mask hides the rest.

A dense mask of all tokens against all costs time and memory for what is hidden, and rules out FlashAttention. Here every
branch is one call of PyTorch's SDPA, with its own tokens as queries, prefix and own tokens as keys. Memory and time then
grow with the answers' lengths, as if each stood in a row of its own, while all else in the model runs on shared tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "kt_branches"


def use_branch_attention(model: Any) -> None:
    """Switch a model that attends through SDPA or FlashAttention to branch attention; one on eager attention stays.

    Rows without branches (generation, evaluation) are attended to as before.
    """
    inner = _pretrained(model)
    if inner.config._attn_implementation == "sdpa" or "flash" in inner.config._attn_implementation:
        inner.set_attn_implementation(NAME)  # says so in a warning where the class cannot; the mask is used then


def branch_mask(model: Any, sizes: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Give the 4-D attention mask with which a model keeps the branches of one packed row apart.

    `sizes` has for every item in the row the tokens of its shared prefix and then of each branch. For branch attention
    the "mask" is these numbers, of shape (1, 1, items, sizes): transformers hands a 4-D mask through to the attention
    untouched, and any other attention would refuse integers instead of computing something else.
    """
    config = _pretrained(model).config
    if config._attn_implementation == NAME:
        width = max(len(row) for row in sizes)
        return torch.tensor([[[[*row, *[0] * (width - len(row))] for row in sizes]]])
    mask = _dense_mask(sizes, device)
    if config._attn_implementation == "sdpa":
        return mask
    # Eager attention adds its mask to the scores.
    return torch.zeros(mask.shape, device=device).masked_fill(~mask, torch.finfo(torch.float32).min)


def branch_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """Attend within one packed row; query, key and value are (1, heads, tokens, head size). See `branch_mask`."""
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # On a CPU, SDPA's backward takes up to twice as long in bfloat16 as in float32. Elsewhere query and key follow the
    # value: under autocast the rotary positions leave float32 behind.
    dtype = torch.float32 if query.device.type == "cpu" else value.dtype
    query, key, values = query.to(dtype), key.to(dtype), value.to(dtype)
    key, values = (repeat_kv(states, query.shape[1] // key.shape[1]) for states in (key, values))
    sizes = [[size for size in row if size] for row in attention_mask[0, 0].tolist()]
    how = {"dropout_p": options.get("dropout") or 0.0, "scale": options.get("scaling")}
    with torch.autocast(query.device.type, enabled=False):
        found = list(_attend(query, key, values, sizes, options.get("sliding_window"), how))
    return torch.cat([part.transpose(1, 2) for part in found], dim=1).to(value.dtype), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, sizes: list[list[int]], window: int | None, how: dict[str, Any]
) -> Iterator[Tensor]:
    flat = [size for row in sizes for size in row]
    parts = zip(*(states.split(flat, dim=2) for states in (query, key, value)), strict=True)
    for row in sizes:
        queries, shared_keys, shared_values = next(parts)
        bias = _visible(row[0], row[0], window, query.device)
        yield scaled_dot_product_attention(queries, shared_keys, shared_values, attn_mask=bias, **how)
        for size in row[1:]:
            queries, own_keys, own_values = next(parts)
            keys, values = torch.cat([shared_keys, own_keys], dim=2), torch.cat([shared_values, own_values], dim=2)
            bias = _visible(size, row[0] + size, window, query.device)
            yield scaled_dot_product_attention(queries, keys, values, attn_mask=bias, **how)


def _visible(queries: int, keys: int, window: int | None, device: Any) -> Tensor:
    """Let the last `queries` of `keys` tokens look back as far as the window; without one no mask is made on a GPU."""
    if window is None or keys <= window:
        return causal_lower_right(queries, keys)
    before = keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before).triu(before - window + 1)


def _dense_mask(sizes: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Build the mask for models with an attention of their own: (1, 1, tokens, tokens), true where a token may look."""
    every = [(item, branch, size) for item, row in enumerate(sizes) for branch, size in enumerate(row)]
    lengths = torch.tensor([size for *_, size in every])
    items, branches = (torch.tensor(column).repeat_interleave(lengths) for column in list(zip(*every, strict=True))[:2])
    same_item = items[:, None] == items[None, :]
    same_branch = (branches[None, :] == 0) | (branches[:, None] == branches[None, :])
    return (same_item & same_branch).tril()[None, None].to(device)


def _pretrained(model: Any) -> PreTrainedModel:
    """Find transformers' model within what wraps it (PEFT, distributed training)."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


AttentionInterface.register(NAME, branch_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
