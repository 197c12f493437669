import numpy as np
import pytest

from fusetune.errors import RecipeError
from fusetune.objective import LOSS, Objective
from fusetune.optimization.constraint import Bound, Constraint

OBJECTIVES = [LOSS, Objective("f1", "maximize")]


def test_bounds_and_a_goal():
    constraint = Constraint.parse(" loss <= 0.5,f1>=8e-1 , max f1")
    assert constraint.bounds == (Bound("loss", True, 0.5), Bound("f1", False, 0.8))
    assert (constraint.goal, constraint.direction) == ("f1", "max")
    assert str(constraint) == "loss <= 0.5, f1 >= 0.8, max f1"
    constraint.check(OBJECTIVES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither"),
        ("max f1", "has 0 bounds and 1 goals"),
        ("loss <= 0.5", "has 1 bounds and 0 goals"),
        ("loss <= 0.5, max f1, min loss", "has 1 bounds and 2 goals"),
        ("loss < 0.5, max f1", "'loss < 0.5' is neither"),
        ("loss <= 0.5 or f1 >= 1, max f1", "is neither"),
        ("loss <= high, max f1", "'loss <= high' needs a number"),
        ("loss <= nan, max f1", "needs a number"),
        ("__import__('os') <= 1, max f1", "is neither"),
        ("loss <= 0.5, maxf1", "'maxf1' is neither"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        Constraint.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lss <= 0.5, max f1", r"no objective 'lss' \(did you mean loss"),
        ("loss <= 0.5, max accuracy", "no objective 'accuracy'; known: loss, f1"),
        ("f1 >= 0.5, max loss", "loss is to be minimized, not max loss"),
    ],
)
def test_names_are_those_of_the_task(text, message):
    with pytest.raises(RecipeError, match=message):
        Constraint.parse(text).check(OBJECTIVES)


def test_excess_is_zero_exactly_where_all_bounds_are_kept():
    Y = np.array([[-0.5, 0.8], [-0.6, 0.9], [-0.4, 0.7], [-0.7, 0.5]])  # loss turned
    constraint = Constraint.parse("loss <= 0.5, f1 >= 0.8, max f1")
    np.testing.assert_allclose(
        constraint.excess(Y, OBJECTIVES), [0.0, 0.1 / 0.3, 0.1 / 0.4, 0.2 / 0.3 + 0.3 / 0.4]
    )


@pytest.mark.parametrize(
    "name",
    ["F1 (macro)", "pass@1", "ndcg@10", "top-5 accuracy", "f1,macro", "a <= b", "max",
     "max error", "précision", "1-acc", "%", "exact_match,strict-match", "f1, max f1"],
)  # fmt: skip
def test_any_name_of_an_objective_is_one_here(name):
    objectives = [LOSS, Objective("f1", "maximize"), Objective(name, "maximize")]
    names = [o.name for o in objectives]
    for text, bound, goal in (
        (f"{name} >= 0.5, max f1", name, "f1"),
        (f"loss <= 0.5 ,max {name}", "loss", name),
        (f"{name}>=0.5,loss <= 1, max {name}", name, name),
    ):
        found = Constraint.parse(text, names=names)
        found.check(objectives)
        assert found.bounds[0].name == bound
        assert found.goal == goal
        assert Constraint.parse(str(found), names=names) == found
