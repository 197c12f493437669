from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
from torch import nn

from fusetune.errors import StageError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import oracle as module
from fusetune.methods.method import FusionResult
from fusetune.methods.oracle import oracle
from fusetune.objective import LOSS
from fusetune.optimization.study import Loop

Build = Callable[..., tuple[MemberPool, Evaluator]]
DISTANCES = (0.5, 0.3, 0.6, 0.2, 0.5)


def solve(
    pool: MemberPool, evaluator: Evaluator, budget: int = 40, **options: object
) -> FusionResult:
    loop = Loop.in_memory()
    return oracle(pool, evaluator, budget=budget, seed=41, loop=loop, **options)  # type: ignore[arg-type]


def subsets(k: int) -> Iterator[FusionWeights]:
    for size in range(1, k + 1):
        for subset in combinations(range(k), size):
            yield FusionWeights.uniform(k, subset)


def brute_force(evaluator: Evaluator, k: int) -> Evaluation:
    primary = evaluator.primary
    return max(
        (evaluator(weights) for weights in subsets(k)),
        key=lambda e: (primary.sign * e.values[primary.name], -e.values["loss"]),
    )


def problem(k: int) -> tuple[np.ndarray, ...]:
    """A linear classifier of noisy rows: the mixture of logits is the fused model."""
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(1, 2, 6))
    members = centre + rng.normal(size=(k, 2, 6)) * rng.uniform(0.3, 1.5, size=(k, 1, 1))
    inputs = rng.normal(size=(150, 6))
    labels = (inputs @ centre[0].T + rng.normal(size=(150, 2))).argmax(axis=1)
    return members, inputs, labels


def test_bert_members_by_brute_force(bert: Build) -> None:
    pool, evaluator = bert(DISTANCES)
    best = brute_force(evaluator, 5)
    result = solve(pool, evaluator.fresh(), budget=31)
    assert result.values == best.values
    assert result.evaluations == 31
    assert result.details["exact"] is True
    assert result.details["members"] == [
        i for i, w in enumerate(result.weights.values) if w > 0
    ]
    again = solve(pool, evaluator.fresh(), budget=5, exact=True)
    assert (again.weights, again.evaluations) == (result.weights, 31)


def test_a_screened_bound_says_so(bert: Build) -> None:
    pool, evaluator = bert(DISTANCES)
    best = brute_force(evaluator, 5).values["accuracy"]
    result = solve(pool, evaluator.fresh(), budget=15)
    assert result.details["exact"] is False
    assert (result.details["screened"], result.details["subsets"]) == (31, 31)
    assert result.evaluations == 15
    starts = [evaluator(FusionWeights.one_hot(i, 5)).values["accuracy"] for i in range(5)]
    starts.append(evaluator(FusionWeights.uniform(5)).values["accuracy"])
    assert max(starts) <= result.values["accuracy"] <= best
    assert solve(pool, evaluator.fresh(), budget=40, evaluations=7).evaluations == 7


def test_screening_finds_the_best_where_the_mixture_is_exact(linear: Build) -> None:
    pool, evaluator = linear(*problem(8))
    best = brute_force(evaluator, 8)
    result = solve(pool, evaluator.fresh(), budget=12)
    assert result.values == best.values
    assert (result.details["screened"], result.evaluations) == (255, 12)


def test_the_split_of_the_evaluator_decides(linear: Build) -> None:
    """Loss alone: a metric is not needed."""
    pool, evaluator = linear(*problem(6), objectives=(LOSS,))
    assert solve(pool, evaluator.fresh(), budget=9).values == brute_force(evaluator, 6).values


def test_more_members_are_screened_by_beams(
    linear: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, evaluator = linear(*problem(8))
    best = brute_force(evaluator, 8)
    monkeypatch.setattr(module, "ALL_SUBSETS", 7)
    everything = solve(pool, evaluator.fresh(), budget=12)  # the beam is wide enough for all
    assert everything.details["screened"] == 255
    assert everything.values == best.values
    monkeypatch.setattr(module, "BEAM", 4)
    narrow = solve(pool, evaluator.fresh(), budget=12)
    assert 8 * 4 < int(str(narrow.details["screened"])) < 255
    assert narrow.details["exact"] is False
    assert narrow.values["f1"] >= max(
        evaluator(FusionWeights.one_hot(i, 8)).values["f1"] for i in range(8)
    )


def test_screening_needs_a_task_and_few_members_do_not(linear: Build) -> None:
    def own(model: nn.Module) -> Evaluation:
        return Evaluation({"loss": float(model.head.weight.detach().square().sum())}, None, 0.0)

    pool, evaluator = linear(*problem(5))
    store = EvaluationStore(None, "own")
    own_score = Evaluator(evaluator.average, evaluator.model, own, (LOSS,), store)
    with pytest.raises(StageError, match="ensemble of the members' predictions needs a task"):
        solve(pool, own_score, budget=10)
    assert solve(pool, own_score, budget=31).details["exact"] is True
