"""How much the evaluation of a w promises, in closed form.

Notation: b points, m objectives, each with an independent normal prediction; mean and
deviation: `b x m`; c boxes.

The region that no observed value dominates is cut into boxes. The expected hypervolume
improvement is then

    Σ_boxes Π_j ∫ P(Y_j ≥ t) dt,  t from the box's lower to its upper edge,

and the integral from t to infinity is the expected improvement over t. Exact for
independent objectives, without samples [Yang2019]_, [Daulton2020]_.

.. [Yang2019] K. Yang et al. Efficient Computation of Expected Hypervolume Improvement Using
   Box Decomposition Algorithms. Journal of Global Optimization 75, 2019.
.. [Daulton2020] S. Daulton et al. Differentiable Expected Hypervolume Improvement for
   Parallel Multi-Objective Bayesian Optimization. NeurIPS 2020.
.. [Srinivas2010] N. Srinivas et al. Gaussian Process Optimization in the Bandit Setting: No
   Regret and Experimental Design. ICML 2010.
"""

from __future__ import annotations

import math

import torch
from botorch.utils.multi_objective.box_decompositions.non_dominated import (
    FastNondominatedPartitioning,
)
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from fusetune.optimization.acquisition import UCB_BETA

FAR = 1e9
"""Stands for infinity, of which no multiple is 0."""

MOST = 32
"""Points of the front that make boxes, from three objectives on."""

CELLS = 1 << 22  # numbers held at once


def expected_improvement(mean: Tensor, deviation: Tensor, threshold: Tensor) -> Tensor:
    """E[max(Y − threshold, 0)]; all shapes broadcast."""
    z = (mean - threshold) / deviation
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    excess: Tensor = deviation * (density + z * torch.special.ndtr(z)).clamp_min(0.0)
    return excess


def upper_bound(mean: Tensor, deviation: Tensor) -> Tensor:
    """The upper confidence bound [Srinivas2010]_."""
    return mean + math.sqrt(UCB_BETA) * deviation


class HypervolumeImprovement:
    """Expected growth of the volume between the front and the origin.

    Args:
        Y: `n x m`; values so far, to be maximised; the reference point is the origin. From
            three objectives on, where boxes multiply, `MOST` points stand for the front.
    """

    def __init__(self, Y: Tensor) -> None:
        m = Y.shape[1]
        origin = torch.zeros(m, dtype=Y.dtype)
        front = _spread(Y[is_non_dominated(Y)], MOST) if m > 2 else Y
        lower, upper = FastNondominatedPartitioning(origin, front).get_hypercell_bounds()
        # Few coordinates make many boxes: the integral is computed once for each.
        self._edges, self._lower, self._upper = [], [], []
        for j in range(m):
            edges, places = torch.stack([lower[:, j], upper[:, j]]).unique(return_inverse=True)
            self._edges.append(edges.clamp_max(FAR))
            self._lower.append(places[0])
            self._upper.append(places[1])

    def __call__(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """`b` values, in units of the objectives' product."""
        size = max(1, CELLS // len(self._lower[0]))
        parts = zip(mean.split(size), deviation.split(size), strict=True)
        return torch.cat([self._values(m, s) for m, s in parts])

    def _values(self, mean: Tensor, deviation: Tensor) -> Tensor:
        product: Tensor | None = None
        for j, edges in enumerate(self._edges):
            beyond = expected_improvement(mean[:, j : j + 1], deviation[:, j : j + 1], edges)
            side = beyond[:, self._lower[j]] - beyond[:, self._upper[j]]
            product = side if product is None else product * side
        assert product is not None
        return product.sum(dim=1)


def _spread(front: Tensor, most: int) -> Tensor:
    """At most that many of the points: the best in each objective, then the farthest."""
    if len(front) <= most:
        return front
    chosen = front.argmax(dim=0).unique().tolist()
    nearest = torch.cdist(front, front[chosen]).min(dim=1).values
    while len(chosen) < most:
        chosen.append(int(nearest.argmax()))
        step = (front - front[chosen[-1]]).norm(dim=1)
        nearest = torch.minimum(nearest, step)
    return front[chosen]
