"""Which of several learning rates a training goes on with."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.pipeline.halving import Attempt, settled, verdict

NOISE = np.random.default_rng(0).normal(0.0, 0.02, 500)
"""Of the rows, which every attempt shares."""


def attempt(value: float | None, own_noise: float = 0.005, *, kept: bool = True) -> Attempt:
    """With the noise of the rows, and some of its own."""
    seed = 0 if value is None else round(1000 * value)
    own = np.random.default_rng(seed).normal(0.0, own_noise, 500)
    samples = () if value is None else tuple(map(float, value + NOISE + own))
    return Attempt(1e-4, value, None, kept, samples)


def test_noise_that_is_shared_is_none_of_the_difference() -> None:
    assert verdict(attempt(0.82), attempt(0.80), 1) == 1  # 2 points: their own errors are 0.7
    assert verdict(attempt(0.80), attempt(0.82), 1) == -1
    assert verdict(attempt(0.805), attempt(0.80), 1) == 0
    assert verdict(attempt(0.82, 0.02), attempt(0.80, 0.02), 1) == 0
    assert verdict(attempt(0.82), attempt(0.80), -1) == -1  # to be minimised


def test_without_outcomes_the_values_decide() -> None:
    low, high = (Attempt(1e-4, value, None, True) for value in (0.80, 0.81))
    assert verdict(high, low, 1) == 1
    assert verdict(low, high, 1) == -1
    assert verdict(low, low, 1) == 0


def test_one_that_diverged_is_the_worst() -> None:
    assert verdict(attempt(None), attempt(0.1), 1) == -1
    assert verdict(attempt(0.1), attempt(None), 1) == 1


def test_samples_that_are_not_defined_are_left_out() -> None:
    first, second = attempt(0.82), attempt(0.80)
    broken = (float("nan"), *second.samples[1:])
    assert verdict(first, Attempt(1e-4, 0.80, None, True, broken), 1) == 1


@pytest.mark.parametrize(
    ("values", "retries", "expected"),
    [
        ([], 2, None),
        ([0.80], 2, None),  # half the rate is always tried
        ([0.80, 0.80], 2, 1),  # and goes on, unless it is clearly worse
        ([0.80, 0.75], 2, 0),
        ([0.80, 0.85], 2, None),  # clearly better: half of it is next
        ([0.80, 0.85, 0.85], 2, 2),
        ([0.80, 0.85, 0.80], 2, 1),
        ([0.80, 0.85, 0.90], 2, 2),  # there are to be no more
        ([0.80, 0.85], 1, 1),
        ([None, 0.80], 2, None),
        ([None, None], 2, 0),
    ],
)
def test_the_rate_that_goes_on(
    values: list[float | None], retries: int, expected: int | None
) -> None:
    assert settled([attempt(value) for value in values], 1, retries) == expected


def test_a_promise_that_is_not_kept_asks_for_a_lower_rate() -> None:
    broken = [attempt(0.80, kept=False), attempt(0.80, kept=False)]
    assert settled(broken, 1, 2) is None
    assert settled([*broken, attempt(0.80)], 1, 2) == 2
    assert settled([*broken, attempt(0.70, kept=False)], 1, 2) == 1
