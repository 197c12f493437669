import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusetune.optimization import simplex

vectors = hnp.arrays(
    np.float64, st.integers(1, 8), elements=st.floats(-5, 5, allow_subnormal=False)
)


def on_simplex(points):
    return (points >= 0).all() and np.allclose(points.sum(axis=-1), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_every_generator_stays_on_the_simplex(k):
    rng = np.random.default_rng(0)
    base = np.vstack([np.eye(k), np.full(k, 1 / k)])
    for points in (
        simplex.dirichlet(50, k, 0.3, rng),
        simplex.faces(50, k, rng),
        simplex.mixtures(base, 50, rng),
        simplex.around(base, 50, rng),
        simplex.reductions(base, 50, rng),
    ):
        assert points.shape == (50, k)
        assert on_simplex(points)


def test_faces_leave_members_out_but_never_all_but_one():
    points = simplex.faces(500, 6, np.random.default_rng(0))
    assert set((points > 0).sum(axis=1)) == {2, 3, 4, 5, 6}


def test_the_same_seed_gives_the_same_points():
    a = simplex.faces(5, 4, np.random.default_rng(3))
    assert (a == simplex.faces(5, 4, np.random.default_rng(3))).all()
    assert (a != simplex.faces(5, 4, np.random.default_rng(4))).any()


def test_subset_of_recognises_plain_averages_only():
    assert simplex.subset_of(np.array([0.0, 1.0, 0.0])) == {1}
    assert simplex.subset_of(np.array([0.5, 0.0, 0.5])) == {0, 2}
    assert simplex.subset_of(simplex.uniform_over(frozenset({0, 1, 2}), 3)) == {0, 1, 2}
    assert simplex.subset_of(np.array([0.6, 0.4, 0.0])) is None


def test_negligible_weights_are_dropped():
    w = simplex.without_negligible(np.array([0.5, 0.49995, 0.00005]))
    assert w[2] == 0.0
    assert w.sum() == pytest.approx(1.0, abs=1e-15)
    assert (simplex.without_negligible(np.full(20_000, 1 / 20_000)) > 0).all()


def test_distance_is_in_l1_and_infinite_from_nothing():
    points = np.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(
        simplex.distance_to_nearest(points, np.array([[0.5, 0.5], [0.0, 1.0]])), [1.0, 0.0]
    )
    assert np.isinf(simplex.distance_to_nearest(points, np.empty((0, 2)))).all()


def test_points_about_the_centre_are_spread_and_do_not_depend_on_their_number():
    points = simplex.about_the_centre(8, 15, seed=1)
    np.testing.assert_allclose(points.sum(axis=1), 1.0)
    assert (points > 0.0).all()
    assert points.max() < 4 / 15, "no member has it all"
    assert simplex.distance_to_nearest(points[:1], points[1:])[0] > 0.2
    np.testing.assert_array_equal(simplex.about_the_centre(5, 15, seed=1), points[:5])
    assert not np.array_equal(simplex.about_the_centre(8, 15, seed=2), points)
