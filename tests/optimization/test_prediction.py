"""Objectives predicted from outputs, or by processes on their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune.optimization import process
from fusetune.optimization.composite import EXPECTED_ERROR, Composite
from fusetune.optimization.prediction import Prediction

K = 4
REFERENCE, SPAN = np.array([-2.0, 0.1]), np.array([0.5, 0.2])
RNG = np.random.default_rng(0)
W = np.vstack([np.eye(K), RNG.dirichlet(np.ones(K), size=9)])
AVERAGES = np.arange(K, len(W))


def truth(points: np.ndarray) -> np.ndarray:
    """A smooth objective, and one that jumps: `b x 2`, to be maximised."""
    smooth = -np.square(points - 1.0 / K).sum(axis=1)
    return np.column_stack([smooth, np.sin(300.0 * points[:, 0])])


def scaled(points: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum((truth(points) - REFERENCE) / SPAN, -1.0))


SPREAD = np.linspace(0.02, 2.0, len(AVERAGES))
POWERS = np.array([1.0, 0.5])


class Outputs:
    """Errors of the first objective are as its deviation, of the second as its root.

    Args:
        wrong: Of the errors, for each objective, where the deviation is 1.
    """

    weights = W[AVERAGES]

    def __init__(self, wrong: tuple[float, float] = (0.01, 0.01)) -> None:
        self.wrong = np.array(wrong)

    def predict(self, points: np.ndarray) -> np.ndarray:
        return truth(points) + self.wrong

    def deviation(self, points: np.ndarray, pending: np.ndarray | None = None) -> np.ndarray:
        return np.full(len(points), 1.0 if pending is None else 0.25)

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        t = len(self.weights)
        signs = np.where(np.arange(t) % 2, 1.0, -1.0)[:, None]
        errors = self.wrong * signs * SPREAD[:t, None] ** POWERS
        return truth(self.weights) + errors, SPREAD[:t]


def composite(outputs: Outputs) -> Composite:
    return Composite(outputs, scaled(W[AVERAGES]), REFERENCE, SPAN)


def prediction(outputs: Outputs, rows: np.ndarray = AVERAGES) -> Prediction:
    return Prediction(W, scaled(W), "matern", None, composite(outputs), rows)


def test_deviations_are_those_of_the_errors_left_out() -> None:
    wrong = np.array([0.1, 0.02])
    outputs = Outputs((0.1, 0.02))
    found = composite(outputs)
    mean, deviation = found(W[:3])
    expected = np.maximum((outputs.predict(W[:3]) - REFERENCE) / SPAN, -1.0)
    np.testing.assert_allclose(mean, expected)
    # Expected errors count as one more observation.
    t, first = len(AVERAGES), EXPECTED_ERROR / SPREAD.max() ** POWERS
    unit = np.sqrt((t * (wrong / SPAN) ** 2 + first**2) / (t + 1))
    assert deviation[0, 0] == pytest.approx(unit[0], rel=1e-6)
    # Errors of values that were drawn up to the lowest are none.
    assert 0.5 * unit[1] < deviation[0, 1] < 1.01 * unit[1]


def test_errors_grow_as_the_deviation_or_as_its_root() -> None:
    found = composite(Outputs((0.3, 0.3)))
    alone, pending = found(W[:3])[1], found(W[:3], W[3:4])[1]
    np.testing.assert_allclose(pending[:, 0], alone[:, 0] / 4.0)
    np.testing.assert_allclose(pending[:, 1], alone[:, 1] / 2.0)


def test_right_outputs_predict_what_no_process_can() -> None:
    found = prediction(Outputs())
    assert found.from_outputs.tolist() == [True, True]
    new = RNG.dirichlet(np.ones(K), size=50)
    mean, deviation = found(new)
    assert np.abs(mean.numpy() - scaled(new)).max() < 0.1
    assert (deviation > 0.0).all()


def test_wrong_outputs_are_outdone_by_the_process_of_a_smooth_objective() -> None:
    found = prediction(Outputs((5.0, 0.01)))
    assert found.from_outputs.tolist() == [False, True]
    new = RNG.dirichlet(np.ones(K), size=50)
    mean, _ = found(new)
    plain, _ = Prediction(W, scaled(W), "matern")(new)
    np.testing.assert_array_equal(mean[:, 0], plain[:, 0])
    assert np.abs(mean[:, 1].numpy() - scaled(new)[:, 1]).max() < 0.1


def test_few_averages_do_not_give_outputs_up() -> None:
    few = Outputs((5.0, 5.0))
    few.weights = W[AVERAGES[:4]]
    found = Prediction(
        W,
        scaled(W),
        "matern",
        None,
        Composite(few, scaled(W[AVERAGES[:4]]), REFERENCE, SPAN),
        AVERAGES[:4],
    )
    assert found.from_outputs.all()


def test_an_objective_that_outputs_say_nothing_of_has_a_process() -> None:
    class Half(Outputs):
        def predict(self, points: np.ndarray) -> np.ndarray:
            return super().predict(points) * [1.0, np.nan]

        def left_out(self) -> tuple[np.ndarray, np.ndarray]:
            values, deviation = super().left_out()
            return values * [1.0, np.nan], deviation

    found = prediction(Half())
    assert found.from_outputs.tolist() == [True, False]
    mean, deviation = found(W)
    assert torch.isfinite(mean).all()
    assert torch.isfinite(deviation).all()


def test_pending_points_count_with_values_that_are_believed() -> None:
    found = prediction(Outputs((5.0, 0.01)))
    new = RNG.dirichlet(np.ones(K), size=3)
    before = found(new)[1]
    believed = found.add_pending(new, np.random.default_rng(1))
    assert believed.shape == (3, 2)
    after = found(new)[1]
    assert (after[:, 0] < before[:, 0]).all()  # of the process
    assert (after[:, 1] < 0.6 * before[:, 1]).all()  # of the outputs


def test_left_out_densities_are_those_of_processes_without_the_point() -> None:
    X, y = torch.as_tensor(W), torch.as_tensor(scaled(W)[:, 0])
    (whole,) = process.fit(X, y[:, None])
    found = whole.left_out(torch.as_tensor(AVERAGES))
    for place, i in enumerate(AVERAGES):
        rest = [j for j in range(len(W)) if j != i]
        without = process.Process(X[rest], y[rest], whole.hyperparameters)
        mean, variance = without.predict(X[[i]])
        noise = max(whole.hyperparameters.noise, 1e-6 * whole.hyperparameters.scale)
        spread = torch.distributions.Normal(mean[0], (variance[0] + noise).sqrt())
        expected = spread.log_prob(y[i]) + 0.5 * np.log(2.0 * np.pi)
        assert found[place].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
