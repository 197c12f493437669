"""How far the consensus goes towards the uniform average, with outcomes of every row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fusetune.evaluation.bootstrap import bootstrap_counts, paired_samples
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.methods.choices import with_choices
from fusetune.methods.method import FusionResult
from fusetune.methods.mobo import mobo
from fusetune.methods.search import weights_of
from fusetune.objective import LOSS, Objective
from fusetune.optimization import selection
from fusetune.optimization.study import Loop
from fusetune.tasks import metrics
from fusetune.tasks.task import Outputs

K = 4
ACCURACY = metrics.find("accuracy")
OBJECTIVES = (LOSS, Objective("accuracy", "maximize"))


class Pool:
    trained = tuple(range(K))

    def __len__(self) -> int:
        return K


class Mixed:
    """Where a model would be: the mixture of the members' logits."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = logits

    def into_model(self, weights: FusionWeights) -> None:
        self.mixture = np.tensordot(np.array(weights.values), self.logits, 1)


class Rows(Scorer):
    """Scores the mixture on every row, as a task would."""

    def __init__(self, mixed: Mixed, labels: NDArray[np.int64]) -> None:
        self.mixed = mixed
        self.task = SimpleNamespace(resample=self.resample)
        self.encoded = SimpleNamespace(labels=labels)  # type: ignore[assignment]

    def __call__(self, model: nn.Module) -> Evaluation:
        z, y = self.mixed.mixture.astype(np.float32), self.encoded.labels
        loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
        values = {"loss": float(loss.mean()), "accuracy": ACCURACY.value(z, y)}
        return Evaluation(values, Outputs(loss, z), 0.01)

    @staticmethod
    def resample(outputs: Outputs, labels: Any, counts: Any) -> dict[str, Any]:
        return {"accuracy": ACCURACY.resampled(outputs.predictions, labels, counts)}


def members(signal: NDArray[np.float64], noise: float, n: int, seed: int = 0) -> Evaluator:
    """k members that see each row's class with their own signal, and noise of their own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=n)
    margin = signal[:, None] * (2 * labels - 1) + noise * rng.normal(size=(K, n))
    mixed = Mixed(np.stack([-margin / 2, margin / 2], axis=2).astype(np.float32))
    store = EvaluationStore(None, "test")
    return Evaluator(mixed, nn.Identity(), Rows(mixed, labels), OBJECTIVES, store)  # type: ignore[arg-type]


def consensus(evaluator: Evaluator) -> tuple[FusionResult, float]:
    """The choice, and the best member's accuracy."""
    loop = Loop.in_memory()
    result = mobo(Pool(), evaluator, budget=16, seed=41, loop=loop, prior=False)  # type: ignore[arg-type]
    study = loop.find("fuse")
    assert study is not None
    known = {weights_of(trial) for trial in study.trials}
    chosen = with_choices(result, study.trials, evaluator).choices["consensus"]
    assert chosen.evaluations > result.evaluations or chosen.weights in known
    single = [evaluator(FusionWeights.one_hot(i, K)) for i in range(K)]
    return chosen, max(e.values["accuracy"] for e in single)


def test_what_the_rows_cannot_tell_apart_goes_towards_the_uniform_average() -> None:
    """Equally good members: what a search finds among them is the luck of the rows."""
    for seed in range(5):
        found, best = consensus(members(np.full(K, 1.0), 1.0, 300, seed))
        assert found.details == {"share_of_uniform": 0.75}
        assert np.abs(np.array(found.weights.values) - 1 / K).max() < 0.25 * (1 - 1 / K) + 1e-9
        assert found.values["accuracy"] >= best


def test_what_the_rows_do_tell_apart_stays() -> None:
    """One member knows, the others mislead: the uniform average is clearly worse."""
    found, best = consensus(members(np.array([3.0, -1.5, -1.5, -1.0]), 1.0, 2000))
    assert found.weights.values[0] > 0.7
    assert found.details.get("share_of_uniform") in (None, 0.25)
    assert found.values["accuracy"] >= best


@pytest.mark.parametrize("n", [40, 150])
def test_a_consensus_is_never_worse_than_the_best_member(n: int) -> None:
    for seed in range(5):
        found, best = consensus(members(np.array([0.2, 0.5, 0.8, -0.5]), 1.0, n, seed))
        assert found.values["accuracy"] >= best


def test_a_shrunk_w_lies_between_itself_and_the_average() -> None:
    w = np.array([0.7, 0.3, 0.0, 0.0])
    np.testing.assert_array_equal(selection.shrunk(w, 0.0), w)
    np.testing.assert_allclose(selection.shrunk(w, 1.0), 0.25)
    np.testing.assert_allclose(selection.shrunk(w, 0.5), [0.475, 0.275, 0.125, 0.125])


def test_the_error_of_a_paired_difference_counts_the_rows_that_differ() -> None:
    """Two models that differ on 40 of 1,000 rows, half of them won: √40 / 1000."""
    n, labels = 1000, np.ones(1000, dtype=np.int64)
    right = np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (n, 1))
    first, second = right.copy(), right.copy()
    first[:20] = second[20:40] = [1.0, 0.0]
    loss = np.zeros(n, dtype=np.float32)
    found = paired_samples(
        "accuracy",
        Outputs(loss, first),
        Outputs(loss, second),
        labels,
        Rows.resample,
        bootstrap_counts(n),
    ).std()
    assert found == pytest.approx(np.sqrt(40) / n, rel=0.05)
