"""The plane through three members, with distances of parameter space on its axes.

    û = (θ_b - θ_a) / |θ_b - θ_a|,    v̂ = the part of θ_c - θ_a that is orthogonal to û, |v̂| = 1
    P(x, y) = θ_a + x û + y v̂

as in [Garipov2018]_, Section 4, and [Izmailov2018]_, Section 3.2. Everything follows from the
members' inner products; no vector of the size of the model is made.

.. [Garipov2018] T. Garipov, P. Izmailov, D. Podoprikhin, D. Vetrov, A. G. Wilson. Loss
   Surfaces, Mode Connectivity, and Fast Ensembling of DNNs. NeurIPS 2018.
.. [Izmailov2018] P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson. Averaging
   Weights Leads to Wider Optima and Better Generalization. UAI 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import MemberError
from fusetune.members.gram import gram
from fusetune.members.member import Members
from fusetune.members.points import Combination

FLATTEST = 1e-3
"""Height of the triangle over its longest side; below it, three members count as collinear."""

DECIMALS = 9
"""Of coefficients: the last bits of inner products depend on the number of threads, and a
point of the plane must be the same point when it is asked for again."""

NEGLIGIBLE = 1e-12
"""Coordinates below it, as a share of the triangle's longest side, are rounding."""

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Place:
    """A point of parameter space as the plane shows it.

    Attributes:
        x: Coordinate along û of its orthogonal projection.
        y: Along v̂.
        distance: From the plane; all three in the units of the weights.
    """

    x: float
    y: float
    distance: float


class Plane:
    """The plane through θ_a, θ_b and θ_c of k members.

    Args:
        products: `k x k`; inner products of the centred members, `gram(pool, centre=True)`.
        corners: a, b and c.

    Raises:
        ValueError: If the three are not different, or lie (almost) on one line.
    """

    def __init__(self, products: NDArray[np.float64], corners: Sequence[int]) -> None:
        a, b, c = corners
        self.products = products
        self.corners = (a, b, c)
        unit = np.eye(len(products))
        first, second = unit[b] - unit[a], unit[c] - unit[a]
        width, other = (math.sqrt(max(s @ products @ s, 0.0)) for s in (first, second))
        longest = max(width, other)
        if width <= FLATTEST * longest:
            raise ValueError("Three corners must be different models.")
        self._least = NEGLIGIBLE * longest
        self._u = first / width
        rest = second - (second @ products @ self._u) * self._u
        height = math.sqrt(max(rest @ products @ rest, 0.0))
        if height <= FLATTEST * longest:
            raise ValueError("Three corners must not lie on one line.")
        self._v = rest / height

    @classmethod
    def through(cls, pool: Members, corners: Sequence[int]) -> Plane:
        """Of three members of a pool; one pass over all members.

        Raises:
            MemberError: If they are equal, or lie on one line in parameter space.
        """
        products = gram(pool, centre=True)
        try:
            return cls(products, corners)
        except ValueError as error:
            names = ", ".join(pool.members[i].path.name for i in corners)
            raise MemberError(
                f"The members {names} span no plane: they are equal or lie on one line.",
                hint="Give three others with --members.",
            ) from error

    def place(self, coefficients: Sequence[float]) -> Place:
        """Where Σ a_i θ_i stands, projected orthogonally into the plane.

        Args:
            coefficients: `k`, of any sign, with sum 1.

        Raises:
            ValueError: If the sum is not 1.
        """
        total = math.fsum(coefficients)
        if not math.isclose(total, 1.0, abs_tol=SUM_TOLERANCE):
            raise ValueError(f"Coefficients must sum to 1; they sum to {total!r}.")
        # The sum of `step` is 0, so that centred members stand for the members themselves.
        step = np.asarray(coefficients, dtype=np.float64)
        step = step - np.eye(len(step))[self.corners[0]]
        x, y = float(step @ self.products @ self._u), float(step @ self.products @ self._v)
        rest = step - x * self._u - y * self._v
        # Residual first, then its norm: the difference of squares would cancel.
        distance = math.sqrt(max(float(rest @ self.products @ rest), 0.0))
        return Place(*(0.0 if abs(v) < self._least else v for v in (x, y, distance)))

    def point(self, x: float, y: float) -> Combination:
        """P(x, y) as coefficients of the members: zero but for the corners', with sum 1."""
        a, b, c = self.corners
        raw = x * self._u + y * self._v
        values = [0.0] * len(self.products)
        values[b] = round(float(raw[b]), DECIMALS) + 0.0  # never -0.0
        values[c] = round(float(raw[c]), DECIMALS) + 0.0
        values[a] = round(1.0 - values[b] - values[c], DECIMALS) + 0.0
        return Combination(tuple(values))
