from __future__ import annotations

import numpy as np
import pytest
import torch

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
