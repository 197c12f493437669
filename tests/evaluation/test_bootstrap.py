from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusetune.evaluation.bootstrap import bootstrap_counts, intervals, paired_difference
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
