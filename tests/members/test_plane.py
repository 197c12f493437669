from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.average import StreamingAverage
from fusetune.members.plane import Plane
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

Raw = Callable[[Sequence[dict[str, Tensor]]], Path]
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 40)) + 100.0  # close together, far from the origin
CENTRED = ROWS - ROWS.mean(axis=0)
PLANE = Plane(CENTRED @ CENTRED.T, (1, 4, 2))


def model(x: float, y: float) -> np.ndarray:
    """P(x, y) in the space of the rows themselves."""
    return np.asarray(PLANE.point(x, y).values) @ ROWS


def test_the_axes_are_distances() -> None:
    """|P(x, y) - P(x', y')| in parameter space is the distance of the coordinates."""
    places = RNG.normal(scale=5.0, size=(6, 2))
    models = np.array([model(*place) for place in places])
    for i in range(6):
        for j in range(6):
            assert np.linalg.norm(models[i] - models[j]) == pytest.approx(
                np.linalg.norm(places[i] - places[j]), abs=1e-6
            )


def test_the_corners_stand_where_they_belong() -> None:
    a, b, c = (PLANE.place(np.eye(5)[i].tolist()) for i in (1, 4, 2))
    assert (a.x, a.y, a.distance) == (0.0, 0.0, 0.0)
    assert b.x == pytest.approx(np.linalg.norm(ROWS[4] - ROWS[1]))
    assert b.y == pytest.approx(0.0, abs=1e-9)
    assert c.y > 0.0
    for place, i in ((a, 1), (b, 4), (c, 2)):
        np.testing.assert_allclose(model(place.x, place.y), ROWS[i], atol=1e-6)
        assert place.distance == pytest.approx(0.0, abs=1e-6)


def test_the_projection_is_the_nearest_point_of_the_plane() -> None:
    for _ in range(5):
        w = RNG.dirichlet(np.ones(5))
        place = PLANE.place(w.tolist())
        rest = w @ ROWS - model(place.x, place.y)
        for corner in (4, 2):
            edge = ROWS[corner] - ROWS[1]
            assert rest @ edge == pytest.approx(0.0, abs=1e-5)
        assert place.distance == pytest.approx(np.linalg.norm(rest), rel=1e-6)


def test_points_outside_the_triangle_have_a_negative_coefficient() -> None:
    values = PLANE.point(-1.0, -1.0).values
    assert min(values) < 0.0
    assert sum(values) == pytest.approx(1.0, abs=1e-12)
    assert [v for i, v in enumerate(values) if i in (0, 3)] == [0.0, 0.0]


def test_a_point_does_not_depend_on_the_last_bits() -> None:
    """Another number of threads adds inner products in another order."""
    other = Plane(CENTRED @ CENTRED.T * (1.0 + 2e-15), (1, 4, 2))
    grid = [(x, y) for x in np.linspace(-3, 9, 7) for y in np.linspace(-3, 9, 7)]
    assert [PLANE.point(x, y) for x, y in grid] == [other.point(x, y) for x, y in grid]


def test_coefficients_have_to_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        PLANE.place([0.5, 0.4, 0.0, 0.0, 0.0])


def test_the_average_makes_the_point_of_the_plane(raw_members: Raw) -> None:
    """Through files and the kernel, with a negative coefficient, as in the sum by hand."""
    generator = torch.Generator().manual_seed(0)
    states = [{"weight": torch.randn(3, 4, generator=generator)} for _ in range(3)]
    pool = MemberPool.open(raw_members(states))
    plane = Plane.through(pool, (0, 1, 2))
    point = plane.point(-0.5, 1.0)
    assert min(point.values) < 0.0
    linear = torch.nn.Linear(4, 3, bias=False)
    StreamingAverage(pool, linear).into_model(point)
    expected = sum(v * s["weight"] for v, s in zip(point.values, states, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(linear.weight.detach(), expected)
    place = plane.place(FusionWeights.uniform(3).values)
    assert place.distance == pytest.approx(0.0, abs=1e-6)  # three members span their average


@pytest.mark.parametrize(
    "third",
    [lambda a, b: a, lambda a, b: (a + 3 * b) / 4, lambda a, b: 2 * b - a],
    ids=["equal", "between", "beyond"],
)
def test_three_members_on_a_line_are_refused(
    raw_members: Raw, third: Callable[[Tensor, Tensor], Tensor]
) -> None:
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)) + 10.0
    folder = raw_members([{"weight": t} for t in (a, b, third(a, b))])
    with pytest.raises(MemberError, match=r"step-0, step-1, step-2 span no plane"):
        Plane.through(MemberPool.of(sorted(folder.iterdir())), (0, 1, 2))
