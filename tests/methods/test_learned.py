from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from fusetune.errors import StageError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.average import ResidentAverage, StreamingAverage
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.learned import learned, minibatches
from fusetune.methods.method import FusionResult
from fusetune.objective import LOSS
from fusetune.optimization.study import Loop

Build = Callable[..., tuple[MemberPool, Evaluator]]
K = 5


def solve(pool: MemberPool, evaluator: Evaluator, budget: int, seed: int = 41) -> FusionResult:
    return learned(pool, evaluator, budget=budget, seed=seed, loop=Loop.in_memory())


def problem(target: list[float], noise: float = 0.3) -> tuple[np.ndarray, ...]:
    """Members `k x 1 x d`, inputs `n x d` and labels `n` of a θ̄(target) with noise."""
    rng = np.random.default_rng(0)
    members = rng.normal(size=(K, 1, 12))
    inputs = rng.normal(size=(160, 12)).astype(np.float32)
    fused = np.einsum("k,kod->d", target, members)
    return members, inputs, inputs @ fused + noise * rng.normal(size=160)


def minimum(members: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The w of the simplex with the lowest mean squared error."""
    design = inputs @ members[:, 0, :].T  # n x k
    found = minimize(
        lambda w: float(np.mean((design @ w - labels) ** 2)),
        np.full(K, 1 / K),
        bounds=[(0.0, 1.0)] * K,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    return np.asarray(found.x)


@pytest.mark.parametrize("target", [[0.4, 0.25, 0.2, 0.1, 0.05], [0.6, 0.0, 0.4, 0.0, 0.0]])
@pytest.mark.parametrize("tokens", [240, 1 << 16])
def test_a_quadratic_is_minimised(linear: Build, target: list[float], tokens: int) -> None:
    """Squared error of a linear model: θ̄(w) enters linearly, the loss is quadratic in w."""
    data = problem(target)
    pool, evaluator = linear(*data, objectives=(LOSS,), tokens=tokens)
    result = solve(pool, evaluator, budget=400)
    best = minimum(*data)
    lowest = evaluator(FusionWeights.normalised(best)).values["loss"]
    start = evaluator(FusionWeights.uniform(K)).values["loss"]
    # Softmax reaches a weight of zero only in the limit.
    assert result.values["loss"] - lowest < 0.005 * (start - lowest)
    np.testing.assert_allclose(result.weights.values, best, atol=0.03)


def test_the_budget_is_the_cost_of_other_methods(linear: Build) -> None:
    pool, evaluator = linear(*problem([0.5, 0.5, 0.0, 0.0, 0.0]), objectives=(LOSS,))
    for budget, passes in ((1, 0), (4, 0), (5, 1), (20, 4), (90, 22)):
        result = solve(pool, evaluator.fresh(), budget)
        assert result.details["passes"] == passes
        assert result.details["cost_in_evaluations"] == 1 + 4 * passes <= budget
        assert result.evaluations == 1 + passes
        if not passes:
            assert result.weights == FusionWeights.uniform(K)
            assert result.details["kept_pass"] == 0


def test_the_iterate_with_the_best_metric_is_kept(linear: Build) -> None:
    pool, evaluator = linear(*problem([0.3, 0.0, 0.0, 0.4, 0.3], noise=3.0), tokens=240)
    asked: list[FusionWeights] = []

    class Recording(Evaluator):
        def __call__(self, weights: FusionWeights) -> Evaluation:
            asked.append(weights)
            return super().__call__(weights)

    recording = Recording(
        evaluator.average,
        evaluator.model,
        evaluator.score,
        evaluator.objectives,
        evaluator.store,
    )
    result = solve(pool, recording, budget=60)
    found = {weights: evaluator(weights).values["pearson"] for weights in asked}
    assert len(found) == 15
    assert result.weights == max(found, key=lambda weights: found[weights])
    assert result.values["pearson"] > found[FusionWeights.uniform(K)]


def test_one_seed_gives_the_same_bits(linear: Build) -> None:
    data = problem([0.5, 0.5, 0.0, 0.0, 0.0])
    pool, evaluator = linear(*data, objectives=(LOSS,), tokens=240)
    first, again, other = (solve(pool, evaluator.fresh(), 41, seed) for seed in (41, 41, 42))
    assert first.weights == again.weights
    assert first.weights != other.weights


def test_both_forms_of_the_average_agree(linear: Build) -> None:
    pool, evaluator = linear(*problem([0.5, 0.5, 0.0, 0.0, 0.0]), objectives=(LOSS,))
    assert isinstance(evaluator.average, ResidentAverage)
    streaming = Evaluator(
        StreamingAverage(pool, evaluator.model),
        evaluator.model,
        evaluator.score,
        evaluator.objectives,
        EvaluationStore(None, "test"),
    )
    assert solve(pool, streaming, 41).weights == solve(pool, evaluator, 41).weights


def test_bert_members_reach_a_lower_loss(bert: Build) -> None:
    """Two members near the model that labelled the rows, three far from it."""
    pool, evaluator = bert((0.05, 0.5, 0.5, 0.1, 0.5), objectives=(LOSS,))
    evaluator.model.train()
    evaluator.model.classifier.requires_grad_(False)  # as in a light variant
    result = solve(pool, evaluator, budget=60)
    uniform = evaluator(FusionWeights.uniform(5)).values["loss"]
    assert result.values["loss"] < uniform - 0.01
    assert result.weights.values[0] + result.weights.values[3] > 0.6
    assert result.seconds > sum(e.seconds for e in [evaluator(result.weights)])
    # The model is left as it was.
    assert evaluator.model.training
    assert all(p.grad is None for p in evaluator.model.parameters())
    trained = {n for n, p in evaluator.model.named_parameters() if not p.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_a_gradient_that_is_not_finite_ends_the_descent(linear: Build) -> None:
    members, inputs, labels = problem([0.5, 0.5, 0.0, 0.0, 0.0])
    members[2] = np.nan
    pool, evaluator = linear(members, inputs, labels, objectives=(LOSS,))
    result = solve(pool, evaluator, budget=41)
    assert result.weights == FusionWeights.uniform(K)
    assert result.details["stopped"] == "the gradient of pass 1 was not finite"


def test_a_function_without_a_task_is_refused(linear: Build) -> None:
    pool, evaluator = linear(*problem([0.5, 0.5, 0.0, 0.0, 0.0]), objectives=(LOSS,))

    def own(model: nn.Module) -> Evaluation:
        return Evaluation({"loss": 1.0}, None, 0.0)

    store = EvaluationStore(None, "own")
    without_task = Evaluator(evaluator.average, evaluator.model, own, (LOSS,), store)
    with pytest.raises(StageError, match="The method learned needs a task, with its loss"):
        solve(pool, without_task, budget=20)

    class Remember:
        def into_model(self, weights: FusionWeights) -> None: ...

    without_members = Evaluator(Remember(), evaluator.model, evaluator.score, (LOSS,), store)
    with pytest.raises(
        StageError, match=r"needs an average .* fusetune\.members\.average\.plan"
    ):
        solve(pool, without_members, budget=20)


@pytest.mark.parametrize(("tokens", "number"), [(1 << 16, 4), (12 * 100, 5), (12 * 20, 8)])
def test_a_pass_has_some_steps_and_every_row_once(
    linear: Build, tokens: int, number: int
) -> None:
    _, evaluator = linear(*problem([0.5, 0.5, 0.0, 0.0, 0.0]), tokens=tokens)
    assert isinstance(evaluator.score, Scorer)
    batches = minibatches(evaluator.score)
    assert len(batches) == number
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == list(range(160))
    for batch in batches:
        labels = torch.from_numpy(evaluator.score.encoded.labels[batch.rows])
        assert torch.equal(batch.inputs["labels"], labels)
