"""`bo`, Optuna's samplers as rivals, and what the rules choose, where the answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from optuna.trial import FrozenTrial
from torch import nn

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.methods import SAMPLERS, available, find
from fusetune.methods.choices import with_choices
from fusetune.methods.method import FusionResult
from fusetune.methods.search import is_study_of_weights, study_name, weights_of
from fusetune.objective import LOSS, Objective, to_maximise
from fusetune.optimization import RIVALS, selection
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.study import Loop

TARGET = np.array([0.5, 0.3, 0.2, 0.0])
K = len(TARGET)
OBJECTIVES = (LOSS, Objective("score", "maximize"))
F = Callable[[np.ndarray], dict[str, float]]


class Pool:
    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(range(len(self)))

    def __len__(self) -> int:
        return K


class Remember:
    weights: FusionWeights

    def into_model(self, weights: FusionWeights) -> None:
        self.weights = weights


def quadratic(w: np.ndarray) -> dict[str, float]:
    """Best metric at TARGET, lowest loss at the uniform average."""
    score = 1.0 - float(np.sum((w - TARGET) ** 2))
    return {"loss": float(np.sum((w - 1 / K) ** 2)), "score": score}


def evaluator(f: F = quadratic) -> Evaluator:
    average = Remember()

    def score(model: nn.Module) -> Evaluation:
        return Evaluation(f(np.array(average.weights.values)), None, 0.01)

    return Evaluator(average, nn.Identity(), score, OBJECTIVES, EvaluationStore(None, "test"))


def solve(
    method: str, f: F = quadratic, budget: int = 30, loop: Loop | None = None
) -> FusionResult:
    return find(method)(
        Pool(),  # type: ignore[arg-type]
        evaluator(f),
        budget=budget,
        seed=41,
        loop=loop or Loop.in_memory(),
    )


def test_every_sampler_is_a_method() -> None:
    assert set(SAMPLERS) <= set(available())
    assert find("tpe").__name__ == "tpe"  # type: ignore[attr-defined]


def test_studies_are_told_from_the_search_of_hyper_parameters() -> None:
    names = [study_name(method) for method in SAMPLERS]
    assert names[:2] == ["fuse", "fuse-bo"]
    assert len(set(names)) == len(names)
    assert all(map(is_study_of_weights, names))
    assert not is_study_of_weights("search")


def test_bo_finds_the_maximum_of_a_quadratic() -> None:
    result = solve("bo", budget=24)
    assert np.abs(np.array(result.weights.values) - TARGET).sum() < 0.05
    assert result.evaluations == 24


def test_bo_starts_where_mobo_starts_and_then_goes_its_own_way() -> None:
    loop = Loop.in_memory()
    solve("bo", loop=loop, budget=11)
    solve("mobo", loop=loop, budget=11)
    studies = [loop.find("fuse-bo"), loop.find("fuse")]
    histories = [[weights_of(t) for t in s.trials] for s in studies if s is not None]
    origins = [[t.user_attrs["origin"] for t in s.trials] for s in studies if s is not None]
    assert origins[0] == origins[1]
    starts = origins[0].index("model")
    assert starts >= K + 1
    assert histories[0][:starts] == histories[1][:starts]
    assert histories[0][starts:] != histories[1][starts:]


def test_bo_does_not_look_at_the_loss() -> None:
    def other_loss(w: np.ndarray) -> dict[str, float]:
        return {**quadratic(w), "loss": float(np.cos(50.0 * w).sum())}

    assert solve("bo", budget=12).weights == solve("bo", other_loss, budget=12).weights


@pytest.mark.parametrize("name", [n for n in RIVALS if n != "gp"])
def test_rivals_have_the_same_budget_and_a_study_of_their_own(name: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cmaes")
    loop = Loop.in_memory()
    result = solve(name, loop=loop, budget=12)
    assert result.evaluations == 12
    assert loop.names() == [f"fuse-{name}"]
    study = loop.find(f"fuse-{name}")
    assert study is not None
    scores = [t.values[1] for t in study.trials]
    assert result.values["score"] == max(scores)
    assert max(max(weights_of(t).values) for t in study.trials) < 1.0  # no members given


def test_names_of_studies_leave_out_those_of_other_runs() -> None:
    ours = Loop.in_memory()
    theirs = Loop(ours.storage, ours.executor, prefix="other/")
    mine = Loop(ours.storage, ours.executor, prefix="mine/")
    solve("random", loop=theirs, budget=4)
    solve("random", loop=mine, budget=4)
    assert mine.names() == ["fuse-random"]
    mine.delete("fuse-random")
    assert mine.names() == []
    assert theirs.names() == ["fuse-random"]


# --- what the rules choose ---------------------------------------------------------------


Searched = tuple[FusionResult, list[FrozenTrial]]


@pytest.fixture(scope="module")
def searched() -> Searched:
    loop = Loop.in_memory()
    result = solve("mobo", loop=loop, budget=14)
    study = loop.find("fuse")
    assert study is not None
    return result, study.trials


def test_rows_of_the_rules(searched: Searched) -> None:
    result, trials = searched
    constraint = Constraint.parse("loss <= 0.05, max score")
    rows = with_choices(result, trials, evaluator(), constraint).rows("mobo")
    assert list(rows) == [
        "mobo",
        "mobo.consensus",
        "mobo.posterior",
        "mobo.knee",
        "mobo.constraint",
    ]
    assert not any(row.choices for row in rows.values())
    best = rows["mobo"].values["score"]
    assert all(row.values["score"] <= best for n, row in rows.items() if n != "mobo.consensus")
    evaluated = {weights_of(t) for t in trials}
    for name, row in rows.items():
        assert row.values == pytest.approx(quadratic(np.array(row.weights.values)))
        new = row.weights not in evaluated
        assert new is (name == "mobo.consensus")
        assert row.evaluations == 14 + new
    inside = [t.values[1] for t in trials if t.values[0] <= 0.05]
    assert rows["mobo.constraint"].values["score"] == max(inside)


def test_the_consensus_is_the_average_that_selection_gives(searched: Searched) -> None:
    result, trials = searched
    evaluated = np.array([weights_of(t).values for t in trials])
    values = to_maximise([quadratic(w) for w in evaluated], OBJECTIVES)
    average = selection.consensus(evaluated, values, OBJECTIVES)
    found = with_choices(result, trials, evaluator()).choices["consensus"].weights.values
    np.testing.assert_allclose(found, average, atol=1e-12)


@pytest.mark.parametrize(("least", "share"), [(0.4, 0.0), (0.75, 0.5), (1.0, 1.0)])
def test_a_consensus_worse_than_the_best_member_goes_towards_the_anchor(
    least: float, share: float
) -> None:
    """All members are equal and good, and so is what has enough weight on one of them."""

    def peaked(w: np.ndarray) -> dict[str, float]:
        return {"loss": 1.0, "score": 1.0 if w.max() >= least else 0.5}

    loop = Loop.in_memory()
    result = solve("mobo", peaked, loop=loop, budget=8)
    study = loop.find("fuse")
    assert study is not None
    found = with_choices(result, study.trials, evaluator(peaked)).choices["consensus"]
    assert found.values["score"] == 1.0
    assert found.details.get("share_of_anchor", 0.0) == share
    if share == 1.0:
        assert found.weights in {weights_of(t) for t in study.trials}


def test_a_constraint_that_nothing_keeps_names_what_is_nearest(searched: Searched) -> None:
    constraint = Constraint.parse("loss <= -1, max score")
    result = with_choices(*searched, evaluator(), constraint)
    assert "constraint" not in result.choices
    (note,) = result.details["notes"]  # type: ignore[misc]
    assert note.startswith(
        "fuse.constraint: no evaluated w keeps loss <= -1. Nearest are trial"
    )
    assert note.count("trial") == 3
    assert f"trial {K} with loss 0.0000" in note  # the uniform average has the lowest loss


def test_results_come_back_from_json(searched: Searched) -> None:
    result = with_choices(*searched, evaluator())
    assert FusionResult.from_json(json.loads(json.dumps(result.to_json()))) == result
