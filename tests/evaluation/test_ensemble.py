from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from fusetune.evaluation import ensemble as module
from fusetune.evaluation.ensemble import Ensemble
from fusetune.tasks.classification import Regression, SequenceClassification
from fusetune.tasks.task import Outputs
from fusetune.tasks.text import TextTask


def task(metrics: list[str], kind: type[TextTask] = SequenceClassification) -> TextTask:
    return kind("test", "unused", text=["text"], label="label", metrics=metrics)


def by_hand(t: TextTask, z: np.ndarray, w: np.ndarray, y: np.ndarray) -> dict[str, float]:
    mixed = np.einsum("k,knc->nc", w, z.astype(np.float64)).astype(np.float32)
    losses = t.losses(torch.from_numpy(mixed), torch.from_numpy(y)).numpy()
    return t.score(Outputs(losses, mixed), y)


@pytest.mark.parametrize("block", [1, 200, 1 << 21])
def test_values_are_those_of_the_mixture(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    w = rng.dirichlet(np.ones(4), size=9)
    classes = task(["f1", "accuracy", "matthews_correlation"])
    numbers = task(["pearson", "spearman"], Regression)
    for t, width, y in (
        (classes, 2, rng.integers(0, 2, 25)),
        (numbers, 1, rng.normal(size=25)),
    ):
        z = rng.normal(size=(4, 25, width)).astype(np.float32)
        found = Ensemble(z, y, t).predict(w)
        assert list(found) == [o.name for o in t.objectives]
        for i in range(9):
            expected = by_hand(t, z, w[i], y)
            assert {n: v[i] for n, v in found.items()} == pytest.approx(expected, rel=1e-5)


def test_a_single_member_is_exact() -> None:
    rng = np.random.default_rng(1)
    t, y = task(["accuracy"]), rng.integers(0, 3, 30)
    z = rng.normal(size=(3, 30, 3)).astype(np.float32)
    found = Ensemble(z, y, t).predict(np.eye(3))
    for i in range(3):
        expected = by_hand(t, z, np.eye(3)[i], y)
        assert found["accuracy"][i] == expected["accuracy"]
        assert found["loss"][i] == pytest.approx(expected["loss"], rel=1e-12)


def test_a_broken_member_spoils_only_its_own_mixtures() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(3, 10, 2)).astype(np.float32)
    z[1, 4, 0] = np.inf
    ensemble = Ensemble(z, rng.integers(0, 2, 10), task(["accuracy"]))
    found = ensemble.predict(np.array([[0.5, 0.0, 0.5], [0.4, 0.2, 0.4], [0.0, 1.0, 0.0]]))
    for values in found.values():
        assert np.isfinite(values).tolist() == [True, False, False]


def test_no_weights_have_no_values() -> None:
    ensemble = Ensemble(
        np.zeros((2, 3, 2), np.float32), np.zeros(3, np.int64), task(["accuracy"])
    )
    assert {n: v.shape for n, v in ensemble.predict(np.empty((0, 2))).items()} == {
        "loss": (0,),
        "accuracy": (0,),
    }


@pytest.mark.parametrize("kind", [SequenceClassification, Regression])
def test_the_minimiser_is_the_lowest_point_of_the_simplex(kind: type[TextTask]) -> None:
    rng = np.random.default_rng(4)
    k, n, numbers = 6, 80, kind is Regression
    y = rng.normal(size=n) if numbers else rng.integers(0, 3, n)
    truth = y[:, None] if numbers else np.eye(3)[y]
    z = (truth + rng.normal(scale=1.5, size=(k, *truth.shape))).astype(np.float32)
    ensemble = Ensemble(z, y, task(["pearson" if numbers else "accuracy"], kind))
    w = ensemble.minimiser()
    assert w is not None
    assert w.min() >= 0.0
    assert w.sum() == pytest.approx(1.0, abs=1e-12)

    def loss(v: np.ndarray) -> float:
        mixed = np.einsum("k,knc->nc", v, z.astype(np.float64))
        if numbers:
            return float(((mixed[:, 0] - y) ** 2).mean())
        return float((logsumexp(mixed, axis=1) - mixed[np.arange(n), y]).mean())

    # Another method, in another parametrisation, from several starts.
    softmax = [
        minimize(lambda u: loss(np.exp(u) / np.exp(u).sum()), start, method="BFGS").fun
        for start in rng.normal(size=(3, k))
    ]
    assert loss(w) <= min(softmax) + 1e-6
    # Convex: no vertex lies downhill [the gap of Frank and Wolfe bounds what is missing].
    slopes = [(loss(w + 1e-6 * (e - w)) - loss(w)) / 1e-6 for e in np.eye(k)]
    assert min(slopes) > -1e-3


def test_the_minimiser_leaves_broken_members_out_and_needs_a_gradient() -> None:
    rng = np.random.default_rng(5)
    t, y = task(["accuracy"]), rng.integers(0, 2, 30)
    z = rng.normal(size=(3, 30, 2)).astype(np.float32)
    z[1, 0, 0] = np.nan
    w = Ensemble(z, y, t).minimiser()
    assert w is not None
    assert w[1] == 0.0
    z[:] = np.nan
    assert Ensemble(z, y, t).minimiser() is None

    class Opaque:
        objectives = t.objectives

    assert Ensemble(z * 0, y, Opaque()).minimiser() is None  # type: ignore[arg-type]
