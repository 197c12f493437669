from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusetune.evaluation.bootstrap import (
    adjusted_p_values,
    bootstrap_counts,
    intervals,
    paired_difference,
)
from fusetune.tasks.task import Outputs


def resample(
    outputs: Outputs, labels: NDArray[Any], counts: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    right = outputs.predictions[:, 0] == labels
    return {"accuracy": counts @ right / counts.sum(axis=1)}


def model(right: NDArray[np.bool_]) -> Outputs:
    """A model that is right where `right` says so; the labels are all 1."""
    return Outputs(np.zeros(len(right), np.float32), right[:, None].astype(np.float32))


def test_counts_are_samples_with_replacement() -> None:
    counts = bootstrap_counts(50, samples=200, seed=1)
    assert counts.shape == (200, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert np.array_equal(counts, bootstrap_counts(50, samples=200, seed=1))
    # A given example is missing from a sample with probability (1 − 1/n)^n ≈ 0.364.
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_the_interval_is_that_of_the_binomial() -> None:
    right = np.arange(400) < 300  # accuracy 0.75, standard error 0.0217
    outputs, labels = model(right), np.ones(400)
    found = intervals(
        {"accuracy": 0.75}, outputs, labels, resample, bootstrap_counts(400, seed=3)
    )
    assert found["accuracy"].value == 0.75
    assert found["accuracy"].low == pytest.approx(0.75 - 1.96 * 0.0217, abs=0.004)
    assert found["accuracy"].high == pytest.approx(0.75 + 1.96 * 0.0217, abs=0.004)


def compared(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Any:
    n = len(a)
    return paired_difference(
        "accuracy",
        (float(a.mean()), model(a)),
        (float(b.mean()), model(b)),
        np.ones(n),
        resample,
        bootstrap_counts(n, seed=4),
    )


def test_a_model_against_itself_differs_by_nothing() -> None:
    right = np.random.default_rng(0).random(300) < 0.8
    difference = compared(right, right)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert difference.p_value == 1.0


def test_pairing_sees_a_small_but_consistent_gain() -> None:
    """Eight examples more, none less: clear when paired, lost in the noise when not."""
    b = np.random.default_rng(0).random(400) < 0.7
    a = b.copy()
    a[np.flatnonzero(~b)[:8]] = True
    difference = compared(a, b)
    assert difference.value == pytest.approx(0.02)
    assert 0 < difference.low < difference.high
    assert difference.p_value < 0.01
    unpaired = np.sqrt(2 * 0.7 * 0.3 / 400)
    assert difference.high - difference.low < 2 * 1.96 * unpaired / 2


def test_equal_models_that_err_elsewhere_are_not_told_apart() -> None:
    random = np.random.default_rng(2)
    a, b = random.random(300) < 0.7, random.random(300) < 0.7
    difference = compared(a, b)
    assert difference.low < 0 < difference.high
    assert difference.p_value > 0.05


def _tries(
    gains: NDArray[np.float64], seed: int, n: int = 400
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Differences of M tries, of unequal deviations, and 300 bootstrap samples of them."""
    random = np.random.default_rng(seed)
    rows = random.normal(gains, np.linspace(0.5, 2.0, len(gains)), size=(n, len(gains)))
    counts = bootstrap_counts(n, samples=300, seed=seed)
    return rows.mean(axis=0), counts @ rows / n


def test_the_best_of_many_tries_without_effect_is_seldom_taken() -> None:
    """By its own p-value, the best of 20 would be taken in nearly two thirds of the cases."""
    naive = adjusted = 0
    for seed in range(40):
        differences, sampled = _tries(np.zeros(20), seed)
        deviation = sampled.std(axis=0)
        naive += bool((differences > 1.645 * deviation).any())
        adjusted += bool((adjusted_p_values(differences, sampled) < 0.05).any())
    assert naive >= 16
    assert adjusted <= 5  # 2 are expected; more than 5 of a binomial in 1 case of 70


def test_a_real_gain_among_many_tries_is_found() -> None:
    gains = np.zeros(20)
    gains[4] = 0.3  # of a deviation of 0.8 in a row, over 400 rows
    differences, sampled = _tries(gains, seed=0)
    found = adjusted_p_values(differences, sampled)
    assert found[4] == pytest.approx(1 / 301)
    assert (np.delete(found, 4) > 0.05).all()
    same = np.zeros((300, 1))
    with_one_more = adjusted_p_values(np.append(differences, 0.0), np.hstack([sampled, same]))
    assert with_one_more[:-1].tolist() == found.tolist()
    assert with_one_more[-1] == 1.0
