"""Means and ratios with bootstrap intervals over the answers (percentiles, seeded), through scipy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from kt.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95
DIGITS = 6
"""Decimals of every number that is reported: more would not be the same on another machine."""


def mean(values: Sequence[float], seed: int, purpose: str) -> dict[str, Any]:
    """Return {"mean", "interval"} of one number per answer; both None without answers, no interval for one alone."""
    import numpy

    if not values:
        return {"mean": None, "interval": None}
    data = numpy.asarray(values, dtype=float)
    return {
        "mean": round(float(data.mean()), DIGITS),
        "interval": _interval((data,), lambda sample, axis=-1: sample.mean(axis=axis), seed, purpose),
    }


def ratio(parts: Sequence[int], wholes: Sequence[int], seed: int, purpose: str) -> dict[str, Any]:
    """Return {"share", "interval"} of a sum over a sum, answers resampled whole; answers with nothing to count are left out."""
    import numpy

    some = [(part, whole) for part, whole in zip(parts, wholes, strict=True) if whole]
    if not some:
        return {"share": None, "interval": None}
    data = numpy.asarray(some, dtype=float).T

    def share(part: Any, whole: Any, axis: int = -1) -> Any:
        return part.sum(axis=axis) / whole.sum(axis=axis)

    return {
        "share": round(float(share(*data)), DIGITS),
        "interval": _interval((data[0], data[1]), share, seed, purpose),
    }


def ratio_difference(
    one: tuple[Sequence[int], Sequence[int]], other: tuple[Sequence[int], Sequence[int]], seed: int, purpose: str
) -> dict[str, Any]:
    """Return {"share", "interval"} of a sum over a sum less another: (parts, wholes) each, items resampled with all four."""
    import numpy

    if not sum(one[1]) or not sum(other[1]):
        return {"share": None, "interval": None}
    data: Any = [numpy.asarray(column, dtype=float) for column in (*one, *other)]

    def difference(part: Any, whole: Any, part_2: Any, whole_2: Any, axis: int = -1) -> Any:
        return part.sum(axis=axis) / whole.sum(axis=axis) - part_2.sum(axis=axis) / whole_2.sum(axis=axis)

    return {
        "share": round(float(difference(*data)), DIGITS),
        "interval": _interval(tuple(data), difference, seed, purpose),
    }


def _interval(data: tuple[Any, ...], statistic: Callable[..., Any], seed: int, purpose: str) -> list[float] | None:
    """Resample answers, all of an answer's numbers together; the purpose gives each figure draws of its own."""
    bootstrap = _bootstrap()
    if data[0].size < 2:
        return None
    found = bootstrap(
        data,
        statistic,
        paired=len(data) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,  # 4,000 answers at a time would otherwise take hundreds of megabytes
        confidence_level=LEVEL,
        method="percentile",
        rng=stream(seed, purpose),
    ).confidence_interval
    return [round(float(found.low), DIGITS), round(float(found.high), DIGITS)]


def stream(seed: int, purpose: str) -> Any:
    """Return the random numbers of a figure: the same for the same seed and purpose."""
    import numpy

    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return numpy.random.default_rng(int.from_bytes(digest[:8], "big"))


def _bootstrap() -> Callable[..., Any]:
    try:
        from scipy.stats import bootstrap
    except ImportError as error:
        raise InputError("kt evaluate needs scipy for its intervals: pip install 'kt[eval]'") from error
    found: Callable[..., Any] = bootstrap
    return found
