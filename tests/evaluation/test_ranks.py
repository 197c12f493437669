from __future__ import annotations

import math

import pytest

from fusetune.evaluation.ranks import rank_correlation


def test_by_hand_with_a_tie() -> None:
    """Ranks 1 2 3 4 against 1 2.5 2.5 4: d² = 0.5; five concordant pairs, one tied."""
    found = rank_correlation([1, 2, 3, 4], [10, 20, 20, 40])
    assert found.n == 4
    assert found.spearman == pytest.approx(4.5 / math.sqrt(5.0 * 4.5))
    assert found.kendall == pytest.approx(5 / math.sqrt(6 * 5))


def test_only_the_order_counts() -> None:
    assert rank_correlation([1, 2, 3], [0.1, 10, 1e6]).spearman == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]).kendall == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("x", "y", "n"),
    [([], [], 0), ([1], [2], 1), ([1, 1, 1], [1, 2, 3], 3), ([1, 2], [math.nan, 3], 1)],
)
def test_not_defined(x: list[float], y: list[float], n: int) -> None:
    found = rank_correlation(x, y)
    assert (found.spearman, found.kendall, found.n) == (None, None, n)


def test_what_is_not_finite_is_left_out() -> None:
    found = rank_correlation([1, 2, 3, 4], [1, math.inf, 2, 3])
    assert (found.spearman, found.n) == (pytest.approx(1.0), 3)
