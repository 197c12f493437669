"""`mobo` with the ensemble of the members as prior, on real if tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.interpolation import Interpolation
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import mobo as module
from fusetune.methods.mobo import ensemble_prior, mobo
from fusetune.methods.search import weights_of
from fusetune.optimization.prior import Prior
from fusetune.optimization.study import Loop

K = 6
Problem = tuple[MemberPool, Evaluator]


@pytest.fixture
def problem(linear: Callable[..., Problem]) -> Problem:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 10))
    theta = rng.normal(size=(2, 10))
    labels = (inputs @ theta.T + rng.normal(scale=1.5, size=(120, 2))).argmax(axis=1)
    members = theta + rng.normal(scale=1.2, size=(K, 2, 10))
    return linear(members, inputs, labels)


def origins(loop: Loop) -> list[str]:
    study = loop.find("fuse")
    assert study is not None
    return [t.user_attrs["origin"] for t in study.trials]


def solve(problem: Problem, budget: int = 22, **options: Any) -> tuple[Any, Loop]:
    loop = Loop.in_memory()
    pool, evaluator = problem
    return mobo(pool, evaluator, budget=budget, seed=3, loop=loop, **options), loop


def test_the_prior_is_the_ensemble_and_starts_at_its_minimiser(problem: Problem) -> None:
    result, loop = solve(problem)
    assert origins(loop)[K + 1] == "prior"
    assert "notes" not in result.details
    _, evaluator = problem
    make = ensemble_prior(evaluator, K)
    assert make is not None
    prior = make(tuple(range(K)))
    # These members are linear, so that the mixture of their logits is the fused model's.
    rng = np.random.default_rng(1)
    for w in rng.dirichlet(np.ones(K), size=3):
        expected = evaluator(FusionWeights.normalised(w.tolist())).values
        found = prior.predict(w[None])
        assert found["loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    study = loop.find("fuse")
    assert study is not None
    losses = [t.values[0] for t in study.trials]
    assert losses[K + 1] == pytest.approx(min(losses), abs=1e-6)


def test_it_learns_from_the_outcomes_of_all_averages(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[set[tuple[float, ...]]] = []

    class Watched(Interpolation):
        def __init__(self, ensemble: Any, weights: Any, predictions: Any) -> None:
            known.append({tuple(w) for w in weights.tolist()})
            super().__init__(ensemble, weights, predictions)

    monkeypatch.setattr(module, "Interpolation", Watched)
    result, loop = solve(problem, budget=2 * K + 6)
    study = loop.find("fuse")
    assert study is not None
    averages = [w.values for w in map(weights_of, study.trials) if max(w.values) < 1.0]
    # The last trial's suggestion knew all that came before it; the final judgement knows all.
    assert set(averages[:-1]) in known
    assert known[-1] == set(averages)
    assert "sobol" not in origins(loop)
    assert "notes" not in result.details


def test_of_very_large_splits_it_learns_from_the_newest(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_NUMBERS", 0)
    monkeypatch.setattr(module, "FEWEST_KNOWN", 3)
    known: list[int] = []
    made = module.Interpolation

    def watched(ensemble: Any, weights: Any, predictions: Any) -> Interpolation:
        known.append(len(weights))
        return made(ensemble, weights, predictions)

    monkeypatch.setattr(module, "Interpolation", watched)
    _, loop = solve(problem)
    assert max(known) == 3
    assert origins(loop).count("model") >= 5


def test_without_their_outcomes_the_mixture_leads_alone(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after somebody deleted them: the search goes on, with less to go by."""
    _, evaluator = problem
    get = type(evaluator.store).get
    monkeypatch.setattr(
        type(evaluator.store),
        "get",
        lambda store, point: get(store, point) if max(point.values) == 1.0 else None,
    )
    result, loop = solve(problem)
    assert len(origins(loop)) == 22
    assert "notes" not in result.details


def test_the_switch_turns_it_off(problem: Problem) -> None:
    _, loop = solve(problem, prior=False)
    assert "prior" not in origins(loop)


def test_a_prior_that_does_not_predict_ends_in_a_note(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ensemble_prior

    def contrary(evaluator: Evaluator, k: int) -> Callable[[tuple[int, ...]], Prior]:
        make = honest(evaluator, k)
        assert make is not None

        def turned(members: tuple[int, ...]) -> Prior:
            prior = make(members)
            return Prior(lambda w: {n: -v for n, v in prior.predict(w).items()}, prior.starts)

        return turned

    monkeypatch.setattr(module, "ensemble_prior", contrary)
    result, _ = solve(problem)
    assert len(result.details["notes"]) == 2
    assert "does not predict loss" in result.details["notes"][0]
    plain, _ = solve(problem, prior=False)
    best = max(problem[1](FusionWeights.one_hot(i, K)).values["f1"] for i in range(K))
    assert min(result.values["f1"], plain.values["f1"]) >= best
