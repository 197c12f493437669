"""Rank correlation: whether two measurements put things in the same order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """How far two measurements agree about an order.

    Attributes:
        spearman: Spearman's ρ; None where it is not defined.
        kendall: Kendall's τ_b, which allows for ties; None where it is not defined.
        n: How many things were measured in both ways.
    """

    spearman: float | None
    kendall: float | None
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation:
    """Spearman's ρ and Kendall's τ_b of two measurements of the same n things.

    Neither is defined for fewer than two things, or where one measurement is the same for
    all. Pairs with a number that is not finite are left out.

    Args:
        x: `n`.
        y: `n`.
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(first)) < 2 or len(set(second)) < 2:
        return RankCorrelation(None, None, len(pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rho = float(stats.spearmanr(first, second).statistic)
        tau = float(stats.kendalltau(first, second).statistic)
    return RankCorrelation(rho, tau, len(pairs))
