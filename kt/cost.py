"""What completions cost: tokens, time and dollars per step and model, from the cache and from the manifests of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from kt.cache import Cache
from kt.cache_admin import rows as query
from kt.errors import InputError
from kt.prices import Price, price_of
from kt.records import Record

REFERENCE = "gpt-3.5-turbo"
"""The model of the paper's cost table."""

SUMS = ("answers", "prompt_tokens", "completion_tokens", "seconds", "paid", "at_price", "at_reference")
_USED = {"model", "completions", "prompt_tokens", "completion_tokens", "cost"}
CENTS = 6
"""Decimals of a dollar that are kept: a short answer of a cheap model costs a few millionths."""

_CACHE = (
    "SELECT prompt AS step, model, kind, count(*) AS answers, sum(status <> 'ok') AS unusable,"
    " sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,"
    " round(sum(latency), 3) AS seconds, round(sum(cost), 6) AS paid"
    " FROM completions GROUP BY prompt, model, kind ORDER BY prompt, model, kind"
)


def cache_costs(cache: Cache, reference: str = REFERENCE) -> list[Record]:
    """Return a row for each prompt and model of a cache: every answer ever received, the unusable ones too.

    "seconds" is the models' time, call by call; "paid" what was paid when it was asked; "at_price" the same tokens at
    today's price table; "at_reference" at the reference model's price, None for log-probabilities, which no chat API sells.
    """
    price = _prices(reference)
    return [
        _priced({key: value for key, value in row.items() if key != "kind"}, row["kind"] == "chat", reference, price)
        for row in query(cache, _CACHE)
    ]


def run_costs(run: str | Path, reference: str = REFERENCE) -> list[Record]:
    """Return a row for each step and model of a run: the answers that its records were made of, from its manifests.

    A rerun takes just these from the cache, so they are what it saves. "seconds" is not known to manifests.
    """
    price = _prices(reference)
    found = []
    for step, manifest in manifests(run):
        asked = "prompt" in manifest.get("config", {})
        for used in manifest["models"]:
            if not isinstance(used, dict) or not used.keys() >= _USED:
                raise InputError(
                    f"{run}: the manifest of step {step} lacks {', '.join(sorted(_USED))} of a model; run the step again"
                )
            row = {
                "step": step,
                "model": used["model"],
                "answers": used["completions"],
                "prompt_tokens": used["prompt_tokens"],
                "completion_tokens": used["completion_tokens"],
                "seconds": None,
                "paid": used["cost"],
            }
            found.append(_priced(row, asked, reference, price))
    return found


def manifests(run: str | Path) -> list[tuple[str, Record]]:
    """Return (step, manifest) of every step of a run that used models, by folder; InputError where there is no manifest."""
    root, found = Path(run), []
    paths = sorted(root.rglob("manifest.json"))
    if not paths:
        raise InputError(f"{run}: no manifest.json in it: not a run, or one that never ended; run it again to finish it")
    for path in paths:
        try:
            manifest = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}; run the step again") from error
        if isinstance(manifest, dict) and isinstance(manifest.get("models"), list) and "step" in manifest:
            found.append((str(path.parent.relative_to(root)), manifest))
    return found


def total(rows: Iterable[Record]) -> Record:
    """Return the sums of rows; a sum is None where no row knows the figure."""
    every = list(rows)
    sums: Record = {}
    for name in SUMS:
        known = [row[name] for row in every if row[name] is not None]
        sums[name] = round(sum(known), CENTS) if known or not every else None
    return sums


def saved(runs: Sequence[str | Path], cached: Sequence[Record] | None, reference: str = REFERENCE) -> Record:
    """Return what runs used in all, and how much of it the cache answered.

    A cache that holds fewer usable answers than the runs used has answered the rest a second time: "from_cache" counts
    them, at the least; None without the cache.
    """
    used = [row for run in runs for row in run_costs(run, reference)]
    made: Record = {"answers": total(used)["answers"], "from_cache": None}
    if cached is not None:
        stored = sum(row["answers"] - row["unusable"] for row in cached)
        made["from_cache"] = max(0, made["answers"] - stored)
    return made


def _prices(reference: str) -> Callable[[str], Price | None]:
    """Return the price table, each model looked up once; InputError if the reference has no price."""
    known: dict[str, Price | None] = {reference: price_of(reference)}
    if known[reference] is None:
        raise InputError(f"{reference}: no price in prices.yaml; add it to ./configs/prices.yaml, or give another --at")

    def price(model: str) -> Price | None:
        if model not in known:
            known[model] = price_of(model)
        return known[model]

    return price


def _priced(row: Record, asked: bool, reference: str, price: Callable[[str], Price | None]) -> Record:
    at_price, at_reference = _dollars(row, price(row["model"])), _dollars(row, price(reference))
    return {**row, "at_price": at_price, "at_reference": at_reference if asked else None}


def _dollars(row: Record, price: Price | None) -> float:
    """A model without a price is one's own, and costs nothing."""
    if price is None:
        return 0.0
    return round(row["prompt_tokens"] * price.prompt + row["completion_tokens"] * price.completion, CENTS)


def report(runs: Sequence[str | Path], cache: Cache | None, reference: str = REFERENCE) -> dict[str, Any]:
    """Return everything `kt cost` says: for each run its steps and total, the cache's, and what it answered again."""
    cached = cache_costs(cache, reference) if cache is not None else None
    told: dict[str, Any] = {"reference": reference, "runs": []}
    for run in runs:
        rows = run_costs(run, reference)
        told["runs"].append({"run": str(run), "steps": rows, "total": total(rows)})
    told["cache"] = None if cached is None else {"steps": cached, "total": total(cached)}
    told["saved"] = saved(runs, cached, reference) if runs else None
    return told
