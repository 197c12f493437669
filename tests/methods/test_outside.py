"""Methods that leave the simplex, on problems whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fusetune.errors import StageError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.members.points import Combination, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import find
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.objective import LOSS
from fusetune.optimization.study import Loop
from fusetune.tasks.classification import Regression, SequenceClassification

Build = Callable[..., tuple[MemberPool, Evaluator]]


def solve(
    name: str, pool: MemberPool, evaluator: Evaluator, start: Tensor, budget: int = 400
) -> FusionResult:
    assert isinstance(evaluator.score, Scorer)
    scorer = evaluator.score
    origin = Origin(lambda: {"head.weight": start}, lambda: scorer)
    return find(name)(
        pool, evaluator, budget=budget, seed=41, loop=Loop.in_memory(), origin=origin
    )


def tensor_of(result: FusionResult) -> np.ndarray:
    assert isinstance(result.point, OwnModel)
    return result.point.tensors["head.weight"].numpy()


def regression(target: list[float], k: int = 4, d: int = 12) -> tuple[np.ndarray, ...]:
    """Members `k x 1 x d`, inputs `n x d`, labels of Σ target_i θ_i with noise."""
    rng = np.random.default_rng(0)
    members = rng.normal(size=(1, 1, d)) + 0.5 * rng.normal(size=(k, 1, d))
    inputs = rng.normal(size=(240, d)).astype(np.float32)
    fused = np.einsum("k,kod->d", target, members)
    return members, inputs, inputs @ fused + 0.1 * rng.normal(size=240)


class TestTwa:
    def test_it_finds_the_least_squares_coefficients(self, linear: Build) -> None:
        members, inputs, labels = regression([1.4, -0.6, 0.5, -0.1])
        pool, evaluator = linear(members, inputs, labels, tokens=12 * 32, objectives=(LOSS,))
        result = solve("twa", pool, evaluator, torch.zeros(1, 12))
        assert isinstance(result.point, Combination)
        design = inputs @ members[:, 0, :].T
        best, *_ = np.linalg.lstsq(design, labels, rcond=None)
        np.testing.assert_allclose(result.point.values, best, atol=0.1)
        lowest = float(np.mean((design @ best - labels) ** 2))
        assert result.values["loss"] == pytest.approx(lowest, rel=0.2)
        assert result.details["kept_step"] > 0

    def test_it_stays_within_its_budget_and_never_below_the_uniform_average(
        self, linear: Build
    ) -> None:
        pool, evaluator = linear(*regression([1.0, 0.0, 0.0, 0.0]), tokens=12 * 32)
        uniform = evaluator(FusionWeights.uniform(4)).values["pearson"]
        for budget in (1, 2, 5, 20):
            result = solve("twa", pool, evaluator.fresh(), torch.zeros(1, 12), budget)
            assert result.details["cost_in_evaluations"] <= budget
            assert result.values["pearson"] >= uniform

    def test_equal_members_span_fewer_dimensions(self, linear: Build) -> None:
        members, inputs, labels = regression([0.5, 0.5, 0.0, 0.0])
        members[3] = members[0]
        pool, evaluator = linear(members, inputs, labels, tokens=12 * 32)
        result = solve("twa", pool, evaluator, torch.zeros(1, 12), 60)
        values = result.point.values if isinstance(result.point, Combination) else ()
        assert max(map(abs, values)) < 5.0
        assert result.values["loss"] < evaluator(FusionWeights.uniform(4)).values["loss"]


class TestModelStock:
    def test_it_is_the_papers_interpolation(self, linear: Build) -> None:
        members, inputs, labels = regression([0.25] * 4)
        start = np.random.default_rng(5).normal(size=(1, 12)).astype(np.float32)
        pool, evaluator = linear(members, inputs, labels)
        result = solve("model_stock", pool, evaluator, torch.tensor(start))
        ways = members[:, 0].astype(np.float32).astype(np.float64) - start
        units = ways / np.linalg.norm(ways, axis=1, keepdims=True)
        cosines = (units @ units.T)[np.triu_indices(4, 1)]
        c = float(cosines.mean())
        t = 4 * c / (1 + 3 * c)
        np.testing.assert_allclose(
            tensor_of(result), start + t * ways.mean(axis=0, keepdims=True), rtol=1e-5
        )
        assert result.details["ratio_mean"] == pytest.approx(t)
        assert 0.0 < t < 1.0
        assert result.evaluations == 1

    def test_members_that_agree_give_their_average_and_that_disagree_the_start(
        self, linear: Build
    ) -> None:
        rng = np.random.default_rng(0)
        way = rng.normal(size=(1, 12))
        _, inputs, labels = regression([0.25] * 4)
        agreeing = np.stack([way, 2 * way])
        pool, evaluator = linear(agreeing, inputs, labels)
        result = solve("model_stock", pool, evaluator, torch.zeros(1, 12))
        np.testing.assert_allclose(tensor_of(result), 1.5 * way, rtol=1e-5)

    def test_opposite_members_fall_back_to_the_start(self, linear: Build) -> None:
        way = np.random.default_rng(0).normal(size=(1, 12))
        _, inputs, labels = regression([0.25] * 4)
        pool, evaluator = linear(np.stack([way, -2 * way]), inputs, labels)
        result = solve("model_stock", pool, evaluator, torch.zeros(1, 12))
        assert np.abs(tensor_of(result)).max() == 0.0

    def test_another_pretrained_model_is_refused(self, linear: Build) -> None:
        pool, evaluator = linear(*regression([0.25] * 4))
        with pytest.raises(StageError, match=r"head\.weight is \(1, 12\) .* and \(3, 12\)"):
            solve("model_stock", pool, evaluator, torch.zeros(3, 12))


class TestFisher:
    def test_the_same_information_gives_the_uniform_average(self, linear: Build) -> None:
        """For squared error of a linear model it is 2 E x², whatever the member."""
        members, inputs, labels = regression([0.25] * 4)
        pool, evaluator = linear(members, inputs, labels, tokens=12 * 16)
        result = solve("fisher", pool, evaluator, torch.zeros(1, 12))
        np.testing.assert_allclose(
            tensor_of(result)[0], members.mean(axis=0)[0], atol=0.06
        )  # to the noise of the drawn labels

    def test_the_weights_are_the_information(self, linear: Build) -> None:
        """Logistic regression: F = E p (1 − p) x² in both rows of a two-class head."""
        rng = np.random.default_rng(0)
        k, d = 3, 6
        margins = np.array([0.2, 1.5, 4.0])[:, None] * rng.normal(size=(k, d))
        members = np.stack([-margins / 2, margins / 2], axis=1)
        inputs = rng.normal(size=(800, d)).astype(np.float32)
        labels = rng.integers(0, 2, size=800)
        pool, evaluator = linear(members, inputs, labels, tokens=d * 16)
        result = solve("fisher", pool, evaluator, torch.zeros(2, d), budget=10_000)
        p = 1.0 / (1.0 + np.exp(-inputs @ margins.T))  # n x k
        information = np.einsum("nk,nd->kd", p * (1 - p), inputs**2) / 800
        expected = (information[:, None] * members).sum(0) / information.sum(0)
        uniform = members.mean(axis=0)
        found = tensor_of(result)
        assert np.abs(found - expected).max() < 0.25 * np.abs(uniform - expected).max()
        assert result.details["examples_per_member"] == 800

    def test_the_budget_sets_the_examples(self, linear: Build) -> None:
        members, inputs, labels = regression([0.25] * 4)
        pool, evaluator = linear(members, inputs, labels, tokens=12 * 16)
        result = solve("fisher", pool, evaluator, torch.zeros(1, 12), budget=8)
        assert result.details["cost_in_evaluations"] <= 8
        assert 240 * 7 / 12 - 16 <= result.details["examples_per_member"] < 240
        again = solve("fisher", pool, evaluator, torch.zeros(1, 12), budget=8)
        assert again.point == result.point


@pytest.mark.parametrize("name", ["twa", "model_stock", "fisher"])
def test_they_say_what_they_need(name: str, linear: Build) -> None:
    pool, evaluator = linear(*regression([0.25] * 4))
    with pytest.raises(StageError, match=f"{name} needs the"):
        find(name)(pool, evaluator, budget=20, seed=41, loop=Loop.in_memory())


@pytest.mark.parametrize("name", ["twa", "fisher"])
def test_the_model_is_left_as_it_was(name: str, bert: Build) -> None:
    pool, evaluator = bert([0.1, 0.2, 0.3])
    assert isinstance(evaluator.score, Scorer)
    solve(name, pool, evaluator, torch.zeros(1))
    assert all(p.grad is None for p in evaluator.model.parameters())


def test_drawn_labels_follow_the_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    names = {"text": ["text"], "label": "label"}
    task = SequenceClassification("test", "unused", metrics=["accuracy"], **names)
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).expand(20_000, 3)
    drawn = task.draw(logits, generator)
    shares = torch.bincount(drawn, minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.015, rtol=0.0)
    numbers = Regression("test", "unused", metrics=["pearson"], **names)
    noisy = numbers.draw(torch.full((20_000, 1), 3.0), generator)
    assert float(noisy.mean()) == pytest.approx(3.0, abs=0.03)
    assert float(noisy.var()) == pytest.approx(0.5, abs=0.03)
