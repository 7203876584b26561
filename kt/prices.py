"""What a token costs: the price table that the user can edit."""

from __future__ import annotations

from typing import NamedTuple

from kt.config import find_shipped, read_yaml
from kt.errors import ConfigError


class Price(NamedTuple):
    """Dollars per token, prompt and completion."""

    prompt: float
    completion: float


def price_of(model: str) -> Price | None:
    """Return a model's price from prices.yaml, the working directory's before the shipped one; None if not listed."""
    path = find_shipped("configs", "prices.yaml")
    row = read_yaml(path).get(model)
    if row is None:
        return None
    try:
        return Price(float(row["input"]) / 1e6, float(row["output"]) / 1e6)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {model}: needs input and output, in dollars per million tokens") from error
