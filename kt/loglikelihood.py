"""Log-probabilities of chosen tokens in packed rows: the model's own forward, its head run only where it is needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from kt.errors import EngineError
from kt.models import LocalModel, is_out_of_memory
from kt.packing import EncodedFact, Row, batches, pack, pack_apart

# Scored positions whose logits are turned into float32 probabilities at a time: 512 x 128k words are 260 MB.
HEAD_ROWS = 512
# Above what rounding does to equal computations, below what a model that reads the mask differently shows.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def score_rows(local: LocalModel, rows: Sequence[Row], batch_tokens: int, *, shared: bool) -> list[list[float]]:
    """Give the log-probability of every target of every row; `shared` rows branch, others are plain sequences."""
    scores: list[list[float]] = [[] for _ in rows]
    for batch in batches([len(row.ids) for row in rows], batch_tokens):
        for index, values in zip(batch, _score_batch(local, [rows[i] for i in batch], shared), strict=True):
            scores[index] = values
    return scores


def sharing_refused(local: LocalModel) -> str | None:
    """Say why this model cannot score facts as branches of one row, or None where it can.

    It is tried out on a few tokens: a model that counts positions by place (ALiBi) or carries a state along the row
    (Mamba, linear attention) gives other numbers for a branch than for the same tokens alone.
    """
    embeddings: Any = local.model.get_input_embeddings()
    words = torch.randint(len(embeddings.weight), (30,), generator=torch.Generator().manual_seed(0)).tolist()
    facts = [EncodedFact(words[:8] + words[8 + 7 * i : 15 + 7 * i], 8) for i in range(3)]
    try:
        branched = torch.tensor(_score_batch(local, pack(facts, range(3)), shared=True)[0])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return "it does not take a mask of our own"
    rows = pack_apart(facts, range(3))
    alone = torch.tensor([value for row in rows for value in _score_batch(local, [row], shared=False)[0]])
    worst = ((branched - alone).abs().max() / alone.abs().mean()).item()
    return None if worst <= TOLERANCE[local.model.dtype] else "its attention does not follow a mask of our own"


def sharing_limit(local: LocalModel) -> int | None:
    """Give the window of a model that attends only so far back: our mask would replace it, or it our mask."""
    config = local.model.config.get_text_config()
    windows = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def _score_batch(local: LocalModel, rows: list[Row], shared: bool) -> list[list[float]]:
    try:
        flat = _forward(local, rows, shared)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) > 1:
            half = len(rows) // 2
            return _score_batch(local, rows[:half], shared) + _score_batch(local, rows[half:], shared)
        raise EngineError(
            f"not enough memory on {local.device} to score {len(rows[0].ids)} tokens with {local.name}: "
            "use dtype bfloat16, a smaller model or another device"
        ) from None
    values = iter(flat)
    return [[next(values) for _ in row.targets] for row in rows]


@torch.inference_mode()
def _forward(local: LocalModel, rows: list[Row], shared: bool) -> list[float]:
    width = max(len(row.ids) for row in rows)
    inputs = {"input_ids": _padded([row.ids for row in rows], width, 0)}
    if shared:
        inputs["position_ids"] = _padded([row.positions for row in rows], width, 0)
        inputs["attention_mask"] = _branch_mask(_padded([row.branches for row in rows], width, -1), local)
    else:
        inputs["attention_mask"] = _padded([[1] * len(row.ids) for row in rows], width, 0)
    places = torch.tensor([line * width + place for line, row in enumerate(rows) for place in row.sources])
    targets = torch.tensor([target for row in rows for target in row.targets]).to(local.device)
    inputs = {name: tensor.to(local.device) for name, tensor in inputs.items()}
    logits = _logits_at(local.model, inputs, places.to(local.device))
    pieces = zip(logits.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True)
    losses = [torch.nn.functional.cross_entropy(piece.float(), want, reduction="none") for piece, want in pieces]
    return [-loss for loss in torch.cat(losses).tolist()]


def _padded(lines: list[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([line + [filler] * (width - len(line)) for line in lines])


def _branch_mask(branches: torch.Tensor, local: LocalModel) -> torch.Tensor:
    """Let a token see what stands before it in its own branch and in the prefix, branch 0.

    `branches`: [rows, width], -1 for padding, which sees padding only (a token that sees nothing would be NaN).
    Returns [rows, 1, width, width], true where the query (third) may look at the key (fourth).
    """
    query, key = branches[:, :, None], branches[:, None, :]
    mask = ((query == key) | ((key == 0) & (query > 0))).tril()[:, None]
    if local.model.config._attn_implementation == "sdpa":
        return mask
    # Eager attention adds its mask to the scores.
    return torch.zeros(mask.shape, dtype=local.model.dtype).masked_fill(~mask, torch.finfo(local.model.dtype).min)


def _logits_at(model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Run the model and return logits [places, vocabulary] at places of the flattened batch."""
    with _narrowed_head(model, places) as narrowed:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[0] if narrowed else logits.flatten(0, 1)[places]


@contextmanager
def _narrowed_head(model: Any, places: torch.Tensor) -> Iterator[list[bool]]:
    """Hand the head only the hidden states at `places`; the list gets an entry once that has happened.

    A hook and not the head called by hand: models scale or cap their logits after it (Gemma, Cohere, Granite).
    """
    narrowed: list[bool] = []

    def pick(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        narrowed.append(True)
        return (args[0].flatten(0, 1)[places][None], *args[1:])

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        yield narrowed
    finally:
        if handle is not None:
            handle.remove()
