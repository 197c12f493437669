from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from fusetune.errors import MemberError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.methods.ema import DECAYS, decayed, ema
from fusetune.methods.method import FusionResult
from fusetune.objective import LOSS, Objective
from fusetune.optimization.study import Loop


@dataclass
class Pool:
    k: int
    trajectories: int = 1

    @property
    def members(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(trajectory=i % self.trajectories) for i in range(self.k)]

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(range(len(self)))

    def __len__(self) -> int:
        return self.k


class Remember:
    weights: FusionWeights

    def into_model(self, weights: FusionWeights) -> None:
        self.weights = weights


def solve(target: np.ndarray, budget: int) -> FusionResult:
    """The score is highest at the target."""
    average = Remember()

    def score(model: nn.Module) -> Evaluation:
        distance = float(np.sum((np.array(average.weights.values) - target) ** 2))
        return Evaluation({"loss": 1.0, "score": -distance}, None, 0.01)

    evaluator = Evaluator(
        average,
        nn.Identity(),
        score,
        (LOSS, Objective("score", "maximize")),
        EvaluationStore(None, "test"),
    )
    pool = Pool(len(target))
    return ema(pool, evaluator, budget=budget, seed=41, loop=Loop.in_memory())  # type: ignore[arg-type]


def test_weights_by_hand() -> None:
    assert decayed(3, 0.5).values == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert decayed(2, 0.75).values == pytest.approx((3 / 7, 4 / 7))
    assert decayed(4, 1.0) == FusionWeights.uniform(4)


@pytest.mark.parametrize("decay", [0.5, 0.75, 0.9375, 1.0])
def test_the_best_decay_is_found(decay: float) -> None:
    weights = decay ** np.arange(4, -1, -1)
    result = solve(weights / weights.sum(), budget=40)
    assert result.weights == decayed(5, decay)
    assert result.details == {"decay": decay, "decays": list(DECAYS)}
    assert result.evaluations == 9


@pytest.mark.parametrize(
    ("budget", "decays"), [(1, [1.0]), (2, [1.0, 0.5]), (3, [1.0, 0.75, 0.5])]
)
def test_a_small_budget_is_kept(budget: int, decays: list[float]) -> None:
    result = solve(np.array([0.0, 0.0, 1.0]), budget)
    assert result.details["decays"] == decays
    assert result.evaluations == budget
    assert result.details["decay"] == decays[-1]


def test_equal_decays_leave_the_uniform_average() -> None:
    def flat(model: nn.Module) -> Evaluation:
        return Evaluation({"loss": 1.0}, None, 0.01)

    evaluator = Evaluator(
        Remember(), nn.Identity(), flat, (LOSS,), EvaluationStore(None, "test")
    )
    result = ema(Pool(5), evaluator, budget=9, seed=0, loop=Loop.in_memory())  # type: ignore[arg-type]
    assert result.weights == FusionWeights.uniform(5)


def test_several_trajectories_have_no_one_order() -> None:
    with pytest.raises(MemberError, match="along one trajectory; these are of several"):
        ema(Pool(4, 2), None, budget=9, seed=0, loop=Loop.in_memory())  # type: ignore[arg-type]
