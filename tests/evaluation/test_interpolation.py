"""Predictions of averages from those of others."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.evaluation.ensemble import Ensemble
from fusetune.evaluation.interpolation import Interpolation
from fusetune.tasks.classification import SequenceClassification

K, N = 5, 30
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, N)
TASK = SequenceClassification(
    "test", "unused", text=["text"], label="label", metrics=["accuracy"]
)
INPUTS = RNG.normal(size=(N, 8))
FIRST = RNG.normal(size=(K, 8, 16)) * 0.4 + RNG.normal(size=(8, 16)) * 0.4
SECOND = RNG.normal(size=(K, 16, 2)) * 0.4 + RNG.normal(size=(16, 2))


def network(w: np.ndarray) -> np.ndarray:
    """Predictions of the average of two-layer networks, `b x n x c`."""
    w = np.atleast_2d(w)
    hidden = np.tanh(np.einsum("nx,bxh->bnh", INPUTS, np.tensordot(w, FIRST, 1)))
    out = np.einsum("bnh,bhc->bnc", hidden, np.tensordot(w, SECOND, 1))
    return np.asarray(out, dtype=np.float32)


def ensemble(predictions: np.ndarray | None = None) -> Ensemble:
    return Ensemble(network(np.eye(K)) if predictions is None else predictions, LABELS, TASK)


def drawn(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(K), size=n)


def interpolation(known: np.ndarray) -> Interpolation:
    return Interpolation(ensemble(), known, network(known))


def values(predictions: np.ndarray) -> dict[str, np.ndarray]:
    return TASK.score_many(predictions, LABELS)


def test_members_and_evaluated_averages_are_exact_and_certain() -> None:
    drawn_ones = drawn(6)
    model = interpolation(drawn_ones)
    known = np.vstack([np.eye(K), drawn_ones])
    found, expected = model.predict(known), values(network(known))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
    np.testing.assert_array_equal(found["accuracy"], expected["accuracy"])
    elsewhere = model.deviation(drawn(20, seed=2))
    assert model.deviation(known).max() < 0.15 * np.median(elsewhere)


def test_a_few_averages_tell_all_others_far_better_than_the_mixture() -> None:
    new = drawn(200, seed=3)
    truth = values(network(new))
    mixture = np.abs(ensemble().predict(new)["loss"] - truth["loss"]).mean()
    errors = [
        np.abs(interpolation(drawn(t)).predict(new)["loss"] - truth["loss"]).mean()
        for t in (5, 20)
    ]
    assert errors[0] < 0.6 * mixture
    assert errors[1] < 0.25 * mixture
    wrong = np.abs(interpolation(drawn(20)).predict(new)["accuracy"] - truth["accuracy"])
    assert wrong.mean() < 0.01  # the staircase itself


def test_where_pairs_of_members_do_all_it_is_exact_from_as_many_averages() -> None:
    pairs = RNG.normal(size=(K, K, N, 2))

    def quadratic(w: np.ndarray) -> np.ndarray:
        apart = np.einsum(
            "bi,bj,ijnc->bnc", w, w, pairs - np.einsum("iinc->inc", pairs)[:, None]
        )
        return np.asarray(np.tensordot(w, network(np.eye(K)), 1) + apart, dtype=np.float32)

    known, new = drawn(K * (K - 1) // 2 + 2), drawn(50, seed=5)
    members = quadratic(np.eye(K))
    model = Interpolation(ensemble(members), known, quadratic(known))
    assert model.lengthscale == pytest.approx(10.0)  # nothing beyond the second order
    np.testing.assert_allclose(
        model.predict(new)["loss"], values(quadratic(new))["loss"], rtol=0.01
    )


def test_left_out_is_what_a_model_without_that_average_says() -> None:
    known = drawn(7)
    model = interpolation(known)
    found, deviation = model.left_out()
    for i in range(len(known)):
        rest = np.delete(known, i, axis=0)
        without = interpolation(rest)
        without.lengthscale, without.noise = model.lengthscale, model.noise
        kernel = without._kernel(rest)
        without._inverse = np.linalg.inv(kernel + model.noise * np.eye(len(rest)))
        without._alpha = (without._inverse @ without._residuals).astype(np.float32)
        expected = without.predict(known[i][None])
        assert found["loss"][i] == pytest.approx(expected["loss"][0], rel=1e-3)
        assert found["accuracy"][i] == expected["accuracy"][0]
        spread = np.sqrt(without.deviation(known[i][None])[0] ** 2 + model.noise)
        assert deviation[i] == pytest.approx(spread, rel=1e-3)


def test_its_deviation_is_that_of_its_errors() -> None:
    known, new = drawn(12), drawn(300, seed=6)
    model = interpolation(known)
    predicted = ensemble().mixed(new) + model._kernel(new) @ model._alpha
    wrong = np.sqrt(np.square(predicted - network(new).reshape(len(new), -1)).mean(axis=1))
    deviation = model.deviation(new)
    assert np.corrcoef(deviation, wrong)[0, 1] > 0.5


def test_pending_points_leave_less_open_and_change_no_prediction() -> None:
    model = interpolation(drawn(5))
    new = drawn(30, seed=7)
    before, after = model.deviation(new), model.deviation(new, new[:3])
    assert (after <= before + 1e-9).all()
    assert after[:3].max() < 0.05 * before[:3].min()


def test_outcomes_with_noise_are_smoothed() -> None:
    """As of low precision: the same average twice would not give the same numbers."""
    known, new = drawn(40), drawn(100, seed=8)
    noisy = network(known) + RNG.normal(scale=0.02, size=(40, N, 2)).astype(np.float32)
    model = Interpolation(ensemble(), known, noisy)
    assert model.noise > 1e-5
    wrong = np.abs(model.predict(new)["loss"] - values(network(new))["loss"])
    assert wrong.mean() < 0.01


def test_a_member_without_predictions_spoils_its_own_averages_alone() -> None:
    members = network(np.eye(K))
    members[2] = np.nan
    known = drawn(4)
    known[:, 2] = 0.0
    known /= known.sum(axis=1, keepdims=True)
    model = Interpolation(ensemble(members), known, network(known))
    new = drawn(5, seed=9)
    assert np.isnan(model.predict(new)["loss"]).all()
    new[:, 2] = 0.0
    new /= new.sum(axis=1, keepdims=True)
    assert np.isfinite(model.predict(new)["loss"]).all()
    assert np.isfinite(model.left_out()[0]["loss"]).all()


def test_equal_members_are_no_reason_to_fail() -> None:
    members = np.repeat(network(np.eye(K))[:1], K, axis=0)
    known = drawn(3)
    model = Interpolation(ensemble(members), known, np.repeat(members[:1], 3, axis=0))
    new = drawn(5, seed=10)
    np.testing.assert_allclose(model.predict(new)["loss"], model.predict(known[:1])["loss"][0])
    assert np.isfinite(model.deviation(new)).all()
    assert np.isfinite(model.left_out()[1]).all()
