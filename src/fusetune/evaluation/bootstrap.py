"""How sure a figure is: percentile bootstrap over the examples of a split.

.. [Efron1993] B. Efron, R. Tibshirani. An Introduction to the Bootstrap. 1993, chapters 13, 16.
.. [White2000] H. White. A Reality Check for Data Snooping. Econometrica 68, 2000.
.. [Hansen2005] P. R. Hansen. A Test for Superior Predictive Ability. Journal of Business &
   Economic Statistics 23, 2005.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.tasks.task import Outputs

SAMPLES = 2000
LEVEL = 0.95

Resample = Callable[[Outputs, NDArray[Any], NDArray[Any]], Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value over the whole split with its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two models on the same examples.

    Attributes:
        value: First minus second, over the whole split.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided: twice the smaller share of samples on one side of zero.
    """

    value: float
    low: float
    high: float
    p_value: float


def bootstrap_counts(n: int, samples: int = SAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """How often each of n examples stands in each sample, `samples x n`."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(n, np.full(n, 1.0 / n), size=samples)
    return counts.astype(np.float64)


def intervals(
    values: Mapping[str, float],
    outputs: Outputs,
    labels: NDArray[Any],
    resample: Resample,
    counts: NDArray[np.float64],
) -> dict[str, Interval]:
    """An interval for every objective of one evaluation.

    Args:
        values: The whole-split values.
        outputs: Per-example outcomes, n examples.
        labels: `n`.
        resample: `Task.resample`.
        counts: `B x n`, of `bootstrap_counts`; the same ones for every model compared.
    """
    sampled = resample(outputs, labels, counts)
    tail = 100 * (1 - LEVEL) / 2
    found: dict[str, Interval] = {}
    for name, value in values.items():
        low, high = np.percentile(sampled[name], [tail, 100 - tail])
        found[name] = Interval(float(value), float(low), float(high))
    return found


def paired_difference(
    name: str,
    first: tuple[float, Outputs],
    second: tuple[float, Outputs],
    labels: NDArray[Any],
    resample: Resample,
    counts: NDArray[np.float64],
) -> Difference:
    """First minus second in objective `name`, both on the same bootstrap samples.

    Pairing removes what makes the split as a whole easy or hard [Efron1993].

    Args:
        name: The objective.
        first: Whole-split value and outcomes of the first model.
        second: Of the second model.
        labels: `n`.
        resample: `Task.resample`.
        counts: `B x n`, of `bootstrap_counts`.
    """
    sampled = paired_samples(name, first[1], second[1], labels, resample, counts)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(sampled, [tail, 100 - tail])
    below, above = np.mean(sampled <= 0), np.mean(sampled >= 0)
    p_value = min(1.0, 2.0 * float(min(below, above)))
    return Difference(first[0] - second[0], float(low), float(high), p_value)


def paired_samples(
    name: str,
    first: Outputs,
    second: Outputs,
    labels: NDArray[Any],
    resample: Resample,
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """First minus second in objective `name` on each bootstrap sample, `B`.

    Their standard deviation is the standard error of the difference. Arguments as those of
    `paired_difference`.
    """
    a, b = (resample(outputs, labels, counts)[name] for outputs in (first, second))
    return np.asarray(a - b)


def adjusted_p_values(
    differences: NDArray[np.float64], sampled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How often chance makes the best of M tries look as good as each one, `M`.

    One-sided p-values of "no better than the reference" that count all M tries on the same
    rows [White2000]_, each difference in units of its own deviation [Hansen2005]_:

        p_c = P(max_j (d*_j − d_j) / s_j ≥ d_c / s_c)

    over bootstrap samples d*. A try that never differs from the reference has 1.

    Args:
        differences: `M`; each try minus the reference, larger is better, over the whole split.
        sampled: `B x M`; the same on B bootstrap samples of the rows.
    """
    deviation = sampled.std(axis=0)
    differs = deviation > 0.0
    found = np.ones(len(differences))
    if differs.any():
        d, s = differences[differs], deviation[differs]
        most = ((sampled[:, differs] - d) / s).max(axis=1)
        reached = (most[:, None] >= d / s).sum(axis=0)
        found[differs] = (reached + 1.0) / (len(sampled) + 1.0)
    return found
