"""Agreement by hand: Cohen's kappa and Krippendorff's alpha of small tables."""

from __future__ import annotations

import pytest

from kt.agreement import agreement
from kt.errors import InputError

pytest.importorskip("nltk")


def labels(text: str) -> dict[str, str]:
    return {str(number): letter for number, letter in enumerate(text)}


def test_two_judges_by_hand() -> None:
    """50 units: both win 20, both lose 15, the first alone wins 5, the second alone 10: observed 0.7, by chance 0.5."""
    found = agreement(
        {"a": labels("w" * 20 + "l" * 15 + "w" * 5 + "l" * 10), "b": labels("w" * 20 + "l" * 15 + "l" * 5 + "w" * 10)}
    )
    assert (found["units"], found["same"], found["kappa"]) == (50, 0.7, 0.4)
    # 55 w and 45 l among 100 labels: 30 unequal ordered pairs of 100 observed, 2 * 55 * 45 / 99 expected.
    assert found["alpha"] == round(1 - 30 / (2 * 55 * 45 / 99), 6)


def test_extremes_and_what_is_not_shared() -> None:
    assert agreement({"a": labels("wwll"), "b": labels("wwll")})["kappa"] == 1
    assert agreement({"a": labels("wl"), "b": labels("lw")})["kappa"] == -1
    found = agreement({"a": labels("wlw"), "b": {"0": "w", "9": "l"}})
    assert (found["units"], found["same"], found["kappa"], found["alpha"]) == (1, 1, None, None)
    assert agreement({"a": {}, "b": labels("w")})["same"] is None
    with pytest.raises(InputError, match="two judges"):
        agreement({"a": labels("w")})
