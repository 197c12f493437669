"""The lowest point of a convex loss on the simplex.

.. [Kraft1988] D. Kraft. A software package for sequential quadratic programming. 1988.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize

ITERATIONS = 200
TOLERANCE = 1e-10

Floats = NDArray[np.float64]


def lowest(loss: Callable[[Floats], tuple[float, Floats]], k: int) -> Floats:
    """The minimiser, `k`, by sequential quadratic programming [Kraft1988].

    Args:
        loss: Point `k` → value and gradient `k`; convex, so that the minimum is global.
        k: Number of weights.
    """
    found = minimize(
        loss,
        np.full(k, 1.0 / k),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * k,
        constraints=LinearConstraint(np.ones(k), 1.0, 1.0),
        options={"maxiter": ITERATIONS, "ftol": TOLERANCE},
    ).x
    weights = np.maximum(found, 0.0)
    return np.asarray(weights / weights.sum())
