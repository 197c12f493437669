from __future__ import annotations

from typing import Any

import pytest

from fusetune.errors import RecipeError, StageError
from fusetune.objective import Objective
from fusetune.pipeline.trajectories import plan, require_same_start
from fusetune.recipe import Recipe
from fusetune.recipe_file import parse

RECIPE = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 4, space: {learning_rate: {low: 1.0e-5, high: 1.0e-3}}}
train: {members: 12}
"""
ACCURACY = Objective("accuracy", "maximize")
FOUND: dict[str, Any] = {"params": {"learning_rate": 1e-4}, "trial": 2}


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, overrides)


def test_one_trajectory_has_no_number() -> None:
    (only,) = plan(recipe(), FOUND, [], ACCURACY)
    assert (only.number, only.seed, only.trial) == (None, 41, 2)
    assert recipe().train.members_each == 12


def test_seeds_differ_from_one_another_and_from_a_neighbour() -> None:
    several = recipe("train.trajectories=3")
    found = plan(several, FOUND, [], ACCURACY)
    assert [t.number for t in found] == [1, 2, 3]
    assert found[0].seed == 41
    assert [t.trial for t in found] == [2, None, None]
    assert all(t.params == FOUND["params"] for t in found)
    assert several.train.members_each == 4
    neighbour = plan(recipe("train.trajectories=3", "seed=42"), FOUND, [], ACCURACY)
    assert len({t.seed for t in [*found, *neighbour]}) == 6
    assert found == plan(several, FOUND, [], ACCURACY)


def test_too_few_trials_that_ended() -> None:
    several = recipe("train.trajectories={count: 2, source: trials}")
    with pytest.raises(StageError, match="only 0 different ones were trained to their end"):
        plan(several, FOUND, [], ACCURACY)


def test_trajectories_from_different_models_are_refused() -> None:
    require_same_start([None])
    require_same_start(["a", "a"])
    with pytest.raises(StageError, match="Trajectory 3 starts from another model"):
        require_same_start(["a", "a", "b"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.trajectories=5"], r"\(5\): 10 or 15"),
        (["train.trajectories={count: 6, source: trials}"], "the best 6 trials of a search"),
        (["train.trajectories=2", "fuse.methods=[ema]"], "ema weighs the members along one"),
        (["train.trajectories=12", "search.objective=fused"], "there is 1 per trajectory"),
        (["train.trajectories=0"], "greater than or equal to 1"),
    ],
)
def test_what_a_recipe_cannot_have(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(*overrides)


@pytest.mark.parametrize(
    ("override", "full"),
    [
        ("search.epochs=null", True),
        ("search.epochs=3", True),
        ("search.epochs=1", False),
        ("search.variant={freeze_layers: 2}", False),
        ("search.trials=0", False),
    ],
)
def test_which_trials_are_full_trainings(override: str, full: bool) -> None:
    assert recipe(override).trains_in_trials is full
