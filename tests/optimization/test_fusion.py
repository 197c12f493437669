import numpy as np
import pytest
import torch

from fusetune.optimization import fusion, simplex
from fusetune.optimization.fusion import Settings

QUICK = Settings(candidates=256, rounds=4, moves=48)


def start(k):
    return np.vstack([np.eye(k), np.full(k, 1 / k)])


def values(W, m):
    """m smooth objectives with optima at different places of the simplex."""
    k = W.shape[1]
    rng = np.random.default_rng(5)
    optima = simplex.dirichlet(m, k, 0.8, rng)
    return np.stack([-((W - a) ** 2).sum(axis=1) for a in optima], axis=1)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_suggests_a_new_point_of_the_simplex_for_any_number_of_objectives(m):
    W = start(5)
    w = fusion.suggest(W, values(W, m), seed=1, settings=QUICK)
    assert w.shape == (5,)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1.0, abs=1e-12)
    assert ((w == 0) | (w >= simplex.NEGLIGIBLE / 2)).all()
    assert simplex.distance_to_nearest(w[None], W)[0] > QUICK.apart


def test_the_same_arguments_give_the_same_bits_and_leave_global_state_alone():
    W = start(4)
    torch.manual_seed(9)
    expected_next = torch.rand(3)
    torch.manual_seed(9)
    a = fusion.suggest(W, values(W, 2), seed=(3, 7), settings=QUICK)
    assert (torch.rand(3) == expected_next).all()
    torch.rand(100)
    b = fusion.suggest(W, values(W, 2), seed=(3, 7), settings=QUICK)
    assert a.tobytes() == b.tobytes()
    c = fusion.suggest(W, values(W, 2), seed=(3, 8), settings=QUICK)
    assert (a != c).any()


def test_a_single_objective_is_optimised():
    W = start(4)
    for n in range(8):
        w = fusion.suggest(W, values(W, 1), seed=n, settings=QUICK)
        W = np.vstack([W, w])
    # The optimum is 0; the best start is the uniform average.
    assert values(W[:5], 1).max() < -0.1
    assert values(W, 1).max() > -0.01


def test_pending_points_and_failed_ones_are_kept_away_from():
    W = start(3)
    Y = values(W, 2)
    first = fusion.suggest(W, Y, seed=0, settings=QUICK)
    second = fusion.suggest(W, Y, seed=0, settings=QUICK, pending=first[None])
    third = fusion.suggest(W, Y, seed=0, settings=QUICK, avoid=first[None])
    assert np.abs(first - second).sum() > 0.01
    assert np.abs(first - third).sum() > QUICK.apart


def test_points_under_evaluation_count_with_what_is_expected_of_them():
    W = start(4)
    Y = values(W, 2)
    chosen = np.empty((0, 4))
    for seed in range(4):
        w = fusion.suggest(W, Y, seed=seed, settings=QUICK, pending=chosen)
        assert simplex.distance_to_nearest(w[None], np.vstack([W, chosen])).min() > 0.02
        chosen = np.vstack([chosen, w])


def test_a_member_that_failed_gets_no_weight():
    W, Y = start(4)[1:-1], values(start(4), 2)[1:-1]
    broken = np.eye(4)[:1]
    for seed in range(4):
        w = fusion.suggest(W, Y, seed=seed, settings=QUICK, avoid=broken)
        assert w[0] == 0.0
        W, Y = np.vstack([W, w]), np.vstack([Y, values(w[None], 2)])


def test_a_mean_function_that_knows_the_answer_finds_it_at_once():
    W = start(8)
    w = fusion.suggest(W, values(W, 1), seed=0, mean=lambda points: values(points, 1))
    plain = fusion.suggest(W, values(W, 1), seed=0)
    assert values(w[None], 1) > -0.01  # the optimum is 0
    assert values(plain[None], 1) < values(w[None], 1)


def test_where_a_mean_function_says_nothing_no_point_is_suggested():
    W = start(4)

    def mean(points):
        return np.where(points[:, :1] > 0.3, np.nan, values(points, 2))

    for seed in range(4):
        w = fusion.suggest(W, values(W, 2), seed=seed, mean=mean, settings=QUICK)
        assert w[0] <= 0.3


def test_constant_objectives_and_outliers_do_not_break_it():
    W = start(4)
    Y = values(W, 2)
    Y[:, 1] = 0.7
    assert np.isfinite(fusion.suggest(W, Y, seed=0, settings=QUICK)).all()
    Y[:, 0] = -1.0
    assert np.isfinite(fusion.suggest(W, Y, seed=0, settings=QUICK)).all()
    Y = values(W, 2)
    Y[0] = -1e9
    assert np.isfinite(fusion.suggest(W, Y, seed=0, settings=QUICK)).all()


def test_one_member_leaves_nothing_to_choose():
    W = np.ones((2, 1))
    assert fusion.suggest(W, np.zeros((2, 2)), seed=0).tolist() == [1.0]


def test_scaling_puts_the_reference_at_zero_and_draws_useless_values_up():
    W = start(3)
    Y = np.array([[-1.0], [-2.0], [-1.5], [-50.0]])
    np.testing.assert_allclose(fusion.scale(W, Y)[:, 0], [1.1, 0.1, 0.6, -1.0])
