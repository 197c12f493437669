import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fusetune.optimization.cube import Cube

SPACE = {
    "learning_rate": FloatDistribution(1e-6, 1e-4, log=True),
    "weight_decay": FloatDistribution(0.0, 0.1),
    "dropout": FloatDistribution(0.0, 0.5, step=0.1),
    "warmup": IntDistribution(0, 10),
    "hidden": IntDistribution(8, 512, log=True),
    "batch": CategoricalDistribution([8, 16, 32]),
    "schedule": CategoricalDistribution(["linear", None, True]),
    "fixed": IntDistribution(3, 3),
}
CUBE = Cube(SPACE)


def test_one_coordinate_each_and_one_per_choice():
    assert CUBE.dimension == 5 + 3 + 3
    assert CUBE.discrete.tolist() == [False, False] + [True] * 9
    assert "fixed" not in CUBE.space


def test_encoding_by_hand():
    cube = Cube({k: SPACE[k] for k in ("learning_rate", "weight_decay", "warmup", "batch")})
    point = cube.encode(
        {"learning_rate": 1e-5, "weight_decay": 0.025, "warmup": 5, "batch": 16}
    )
    np.testing.assert_allclose(point, [0.5, 0.25, 0.5, 0.0, 1.0, 0.0])


@given(st.lists(st.floats(0, 1), min_size=CUBE.dimension, max_size=CUBE.dimension))
def test_every_point_stands_for_allowed_values_and_snapping_is_stable(point):
    params = CUBE.decode(np.array(point))
    for name, value in params.items():
        d = SPACE[name]
        assert d._contains(d.to_internal_repr(value)), (name, value)
    snapped = CUBE.snap(np.array([point]))[0]
    assert ((snapped >= 0) & (snapped <= 1)).all()
    again = CUBE.decode(snapped)
    assert {n: again[n] for n in again if not isinstance(again[n], float)} == {
        n: params[n] for n in params if not isinstance(params[n], float)
    }
    assert again["learning_rate"] == pytest.approx(params["learning_rate"], rel=1e-12)
    assert again["dropout"] == params["dropout"]


def test_integers_own_equal_intervals():
    cube = Cube({"n": IntDistribution(1, 4)})
    values = [cube.decode(np.array([u]))["n"] for u in np.linspace(0.001, 0.999, 400)]
    assert np.bincount(values)[1:].tolist() == [100, 100, 100, 100]


def test_enumerate_lists_a_small_discrete_space():
    cube = Cube({"a": CategoricalDistribution(["x", "y"]), "b": IntDistribution(0, 4, step=2)})
    everything = cube.enumerate(limit=6)
    assert [tuple(cube.decode(p).values()) for p in everything] == [
        (a, b) for a in "xy" for b in (0, 2, 4)
    ]
    assert cube.enumerate(limit=5) is None
    assert CUBE.enumerate(limit=10**9) is None
