"""The methods on a problem whose answer is known: f is a function of w alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from torch import nn

from fusetune.errors import RecipeError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.methods import available, find
from fusetune.methods.method import FusionResult
from fusetune.objective import LOSS, Objective
from fusetune.optimization.study import Loop

TARGET = np.array([0.5, 0.3, 0.2, 0.0, 0.0])
F = Callable[[np.ndarray], dict[str, float]]


@dataclass
class Pool:
    """Stands for k members: the methods under test ask for their number only."""

    k: int
    bases: int = 0  # the last ones of them

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(range(self.k - self.bases))

    def __len__(self) -> int:
        return self.k


class Remember:
    """An average that remembers w instead of mixing tensors."""

    weights: FusionWeights

    def into_model(self, weights: FusionWeights) -> None:
        self.weights = weights


def smooth(w: np.ndarray) -> dict[str, float]:
    """Best metric at TARGET; lowest loss somewhere else, nearer to the uniform average."""
    other = 0.5 * TARGET + 0.5 / len(TARGET)
    return {
        "loss": float(np.sum((w - other) ** 2)),
        "score": 1.0 - float(np.sum((w - TARGET) ** 2)),
    }


def solve(
    method: str, f: F = smooth, budget: int = 40, seed: int = 41, bases: int = 0
) -> FusionResult:
    average = Remember()

    def score(model: nn.Module) -> Evaluation:
        return Evaluation(f(np.array(average.weights.values)), None, 0.01)

    objectives = (LOSS, Objective("score", "maximize"))
    evaluator = Evaluator(
        average, nn.Identity(), score, objectives, EvaluationStore(None, "test")
    )
    pool = Pool(len(TARGET), bases)
    return find(method)(
        pool,  # type: ignore[arg-type]
        evaluator,
        budget=budget,
        seed=seed,
        loop=Loop.in_memory(),
    )


def test_every_file_is_a_method() -> None:
    assert {"finetune", "swa", "greedy", "mobo"} <= set(available())
    for name in available():
        assert callable(find(name))


def test_unknown_methods_are_named_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"Unknown method 'soup'; known: .*greedy.*mobo"):
        find("soup")


def test_finetune_takes_the_best_member() -> None:
    result = solve("finetune")
    assert result.weights == FusionWeights.one_hot(0, 5)
    assert result.evaluations == 5


def test_finetune_tells_equal_members_apart_by_their_loss() -> None:
    def flat(w: np.ndarray) -> dict[str, float]:
        return {"loss": float(w @ np.array([3.0, 1.0, 2.0, 1.0, 5.0])), "score": 0.5}

    assert solve("finetune", flat).weights == FusionWeights.one_hot(1, 5)


def test_swa_is_the_uniform_average() -> None:
    result = solve("swa")
    assert result.weights.values == (0.2,) * 5
    assert result.evaluations == 1


def test_a_base_model_is_a_member_of_searches_alone() -> None:
    """The last of five is the base, and the best of all single ones."""

    def towards_the_base(w: np.ndarray) -> dict[str, float]:
        distance = float(np.sum((w - np.array([0.3, 0.0, 0.0, 0.0, 0.7])) ** 2))
        return {"loss": distance, "score": -distance}

    assert solve("finetune", towards_the_base, bases=1).weights == FusionWeights.one_hot(0, 5)
    assert solve("swa", towards_the_base, bases=1).weights.values == (0.25,) * 4 + (0.0,)
    for method in ("mobo", "greedy", "bo"):
        assert solve(method, towards_the_base, bases=1).weights.values[4] >= 0.5

    def only_the_average(w: np.ndarray) -> dict[str, float]:
        hit = w.tolist() == [0.25, 0.25, 0.25, 0.25, 0.0]
        return {"loss": 1.0, "score": float(hit)}

    for method in ("mobo", "bo"):  # never worse than swa, whose point they begin with
        assert solve(method, only_the_average, budget=8, bases=1).values["score"] == 1.0


def test_greedy_adds_what_improves() -> None:
    """From member 0 (best): {0,1} improves, {0,1,2} improves, a fourth does not."""
    result = solve("greedy")
    assert result.weights == FusionWeights.uniform(5, {0, 1, 2})
    assert result.evaluations == 5 + 4


def test_mobo_comes_near_the_best_weights() -> None:
    result = solve("mobo", budget=40)
    distance = np.abs(np.array(result.weights.values) - TARGET).sum()
    assert distance < 0.15
    assert result.evaluations == 40


@pytest.mark.parametrize("seed", [41, 42, 43])
@pytest.mark.parametrize("budget", [10, 20])
def test_mobo_is_never_worse_than_what_it_starts_from(seed: int, budget: int) -> None:
    """On a rugged landscape, where a model of it helps little."""
    random = np.random.default_rng(seed)
    bumps = random.normal(size=(5, 6))

    def rugged(w: np.ndarray) -> dict[str, float]:
        return {
            "loss": float(np.sum(np.cos(9 * w @ bumps))),
            "score": float(np.sum(np.sin(11 * w @ bumps))),
        }

    rivals = [solve(name, rugged).values["score"] for name in ("finetune", "swa", "greedy")]
    assert solve("mobo", rugged, budget, seed).values["score"] >= max(rivals)


def test_mobo_survives_a_candidate_that_gives_nan() -> None:
    def broken(w: np.ndarray) -> dict[str, float]:
        values = smooth(w)
        return dict.fromkeys(values, np.nan) if w[4] > 0.15 else values

    result = solve("mobo", broken, budget=25)
    assert np.isfinite(list(result.values.values())).all()
    assert result.weights.values[4] <= 0.15
