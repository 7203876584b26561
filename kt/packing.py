"""Questions and their facts into rows of tokens: what they share is laid down once, each fact follows as its own branch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any


@dataclass(frozen=True)
class EncodedFact:
    """The tokens of a context and a fact; those from `start` on (never 0) are scored, the ones before are given."""

    ids: list[int]
    start: int

    @property
    def tokens(self) -> int:
        """The number of tokens scored."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Row:
    """Tokens for one line of a batch: a shared prefix (branch 0), then one branch for every fact.

    `positions` restart at the prefix's end in every branch. For every scored token `targets` has its id and `sources`
    the place in the row that predicts it, fact after fact; `facts` are their indices, one a branch.
    """

    ids: list[int]
    branches: list[int]
    positions: list[int]
    sources: list[int]
    targets: list[int]
    facts: list[int]


def encode_facts(tokenizer: Any, context: str, facts: Sequence[str]) -> list[EncodedFact]:
    """Tokenise context and context + fact, and cut every fact where the two first differ.

    As lm-eval's loglikelihood does it, special tokens included, but for white space at the context's end, which
    belongs to the context here (lm-eval counts it to the fact). An empty context is the BOS (or EOS) token.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not context:
        bare = _tokenise(tokenizer, list(facts), special=False)
        return [EncodedFact([bos, *ids], 1) if ids[:1] != [bos] else EncodedFact(ids, 1) for ids in bare]
    # A chat template has written the BOS already; a second one would change every number.
    special = not (tokenizer.bos_token and context.startswith(tokenizer.bos_token))
    given, *whole = _tokenise(tokenizer, [context, *(context + fact for fact in facts)], special)
    return [_cut(given, ids, bos) for ids in whole]


def pack(facts: Sequence[EncodedFact], group: Sequence[int], row_tokens: int | None = None) -> list[Row]:
    """Lay a group of facts, those of one question, into as few rows as `row_tokens` allows; no fact is split."""
    rows: list[Row] = []
    chosen: list[int] = []
    shared = common_prefix([facts[index].ids[:-1] for index in group])
    used = shared
    for index in group:
        own = len(facts[index].ids) - 1 - shared
        if chosen and row_tokens is not None and used + own > row_tokens:
            rows.append(_row(facts, chosen))
            chosen, used = [], shared
        chosen.append(index)
        used += own
    return [*rows, _row(facts, chosen)] if chosen else rows


def pack_apart(facts: Sequence[EncodedFact], group: Sequence[int]) -> list[Row]:
    """Give every fact a row of its own, for models that cannot be told to share."""
    return [_row(facts, [index]) for index in group]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group rows of like length, longest first, so that rows times longest row stays within `batch_tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all sequences have in common."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def _tokenise(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
    return ids


def _cut(given: list[int], whole: list[int], bos: int) -> EncodedFact:
    start = common_prefix([given, whole])
    # Nothing in common (no BOS, and the first token runs into the fact): the first token still needs a predictor.
    return EncodedFact(whole, start) if start else EncodedFact([bos, *whole], 1)


def _row(facts: Sequence[EncodedFact], chosen: Sequence[int]) -> Row:
    # The last token of a fact predicts nothing that is asked for, so it is left out.
    fed = {index: facts[index].ids[:-1] for index in chosen}
    shared = common_prefix(list(fed.values()))
    row = Row(fed[chosen[0]][:shared], [0] * shared, list(range(shared)), [], [], [])
    for branch, index in enumerate(chosen, start=1):
        fact, begin = facts[index], len(row.ids)
        tail = fed[index][shared:]
        row.ids.extend(tail)
        row.branches.extend([branch] * len(tail))
        row.positions.extend(range(shared, shared + len(tail)))
        before = range(fact.start - 1, len(fact.ids) - 1)
        row.sources.extend(place if place < shared else begin + place - shared for place in before)
        row.targets.extend(fact.ids[fact.start :])
        row.facts.append(index)
    return row
