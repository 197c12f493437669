import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusetune.errors import RecipeError
from fusetune.objective import LOSS, Objective
from fusetune.optimization import pareto

F1 = Objective("f1", "maximize")
STAIRS = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.0, 1.0], [2.0, 2.0]])


def test_front_by_hand():
    assert pareto.front(STAIRS).tolist() == [0, 1, 2]
    assert pareto.front(np.array([[1.0], [3.0], [2.0]])).tolist() == [1]
    assert pareto.front(np.empty((0, 2))).tolist() == []


def test_hypervolume_by_hand():
    # Three boxes of 1 x 3, 1 x 2 and 1 x 1 side by side.
    assert pareto.hypervolume(STAIRS, np.zeros(2)) == pytest.approx(6.0)
    assert pareto.hypervolume(STAIRS, np.array([1.0, 1.0])) == pytest.approx(1.0)
    assert pareto.hypervolume(STAIRS, np.array([3.0, 3.0])) == 0.0
    assert pareto.hypervolume(np.array([[2.0], [5.0]]), np.array([1.0])) == 4.0
    cube = np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]])
    assert pareto.hypervolume(cube, np.zeros(3)) == pytest.approx(3.0)
    assert pareto.hypervolume(np.full((1, 4), 2.0), np.zeros(4)) == pytest.approx(16.0)


def test_curve_by_hand():
    curve = pareto.hypervolume_curve(STAIRS, np.zeros(2))
    np.testing.assert_allclose(curve, [3.0, 5.0, 6.0, 6.0, 6.0])


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)),
                  elements=st.integers(-3, 3).map(float)))  # fmt: skip
def test_curve_agrees_with_the_hypervolume_of_every_prefix(Y):
    reference = np.full(Y.shape[1], -2.5)
    curve = pareto.hypervolume_curve(Y, reference)
    prefixes = [pareto.hypervolume(Y[: i + 1], reference) for i in range(len(Y))]
    np.testing.assert_allclose(curve, prefixes, rtol=1e-9, atol=1e-9)
    assert (np.diff(curve) >= 0).all()


def test_reference_lies_a_tenth_of_the_range_beyond_the_worst_member():
    members = np.array([[-0.8, 0.3], [-0.6, 0.5], [-0.7, 0.4]])
    reference, span = pareto.reference_point(members)
    np.testing.assert_allclose(reference, [-0.82, 0.28])
    np.testing.assert_allclose(span, [0.2, 0.2])


def test_reference_is_not_dragged_away_by_a_diverged_member():
    members = np.array([[-0.5], [-0.52], [-0.55], [-0.58], [-0.6], [-900.0]])
    reference, span = pareto.reference_point(members)
    assert -0.8 < reference[0] < -0.6
    assert 0.1 < span[0] < 0.3


def test_reference_of_constant_objectives_and_of_one_member():
    for members in (np.full((5, 2), 0.7), np.array([[0.7, 0.7]])):
        reference, span = pareto.reference_point(members)
        np.testing.assert_allclose(reference, [0.6, 0.6])
        np.testing.assert_allclose(span, 1.0)


def test_best_is_the_highest_metric_then_the_lowest_loss_then_the_earliest():
    Y = np.array([[-0.5, 0.8], [-0.6, 0.9], [-0.4, 0.9], [-0.4, 0.9]])
    assert pareto.choose("best", Y, [LOSS, F1]) == 2
    assert pareto.choose("best", Y[:, :1], [LOSS]) == 2
    assert pareto.choose("best", Y[:, 1:], [F1]) == 1


def test_knee_is_the_point_farthest_beyond_the_line_through_the_ends():
    Y = np.array([[-1.0, 1.0], [-0.1, 0.9], [0.0, 0.0], [-0.5, 0.95], [-0.9, 0.1]])
    assert pareto.choose("knee", Y, [LOSS, F1]) == 1
    assert pareto.choose("knee", Y[:1], [LOSS, F1]) == 0


def test_an_unknown_rule_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"the rules are best, knee; got 'luck'"):
        pareto.choose("luck", STAIRS, [LOSS, F1])
    with pytest.raises(ValueError, match="finite rows"):
        pareto.choose("best", np.array([[np.nan, 1.0]]), [LOSS, F1])
