"""The geometry of Σ w = 1, w ≥ 0: where fusion weights live.

Notation: k members, n points, W: `n x k` float64, every row a point of the simplex.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import qmc

Points = NDArray[np.float64]

NEGLIGIBLE = 1e-4
"""A weight below this changes nothing in the fused model, but costs a read of its member."""


def uniform_over(members: frozenset[int], k: int) -> Points:
    """The plain average of some of the k members, `k`."""
    return np.array([1.0 / len(members) if i in members else 0.0 for i in range(k)])


def subset_of(w: Points, tolerance: float = 1e-9) -> frozenset[int] | None:
    """The members whose plain average `w` is, or None if it is no plain average."""
    support = frozenset(int(i) for i in np.flatnonzero(w > tolerance))
    if support and np.allclose(w, uniform_over(support, len(w)), rtol=0.0, atol=tolerance):
        return support
    return None


def dirichlet(n: int, k: int, concentration: float, rng: np.random.Generator) -> Points:
    """Draw n times from the symmetric Dirichlet distribution; 1 is uniform on the simplex."""
    return rng.dirichlet(np.full(k, concentration), size=n)


def about_the_centre(n: int, k: int, seed: int) -> Points:
    """Scrambled Sobol points of the box [0, 1]^k, divided by their sums, `n x k`.

    They lie about the uniform average, where the members of one trajectory mix best: most
    weights are between 0 and 2/k.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # n need not be a power of two
        box = np.maximum(qmc.Sobol(k, rng=seed).random(n), 1e-6)
    return np.asarray(box / box.sum(axis=1, keepdims=True))


def faces(n: int, k: int, rng: np.random.Generator) -> Points:
    """Draw n points, each uniform on a random face: all but 2 to k members left out."""
    raw = rng.standard_exponential((n, k))
    size = rng.integers(2, k + 1, size=n) if k > 2 else np.full(n, k)
    rank = rng.random((n, k)).argsort(axis=1).argsort(axis=1)
    raw[rank >= size[:, None]] = 0.0
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def mixtures(points: Points, n: int, rng: np.random.Generator) -> Points:
    """Draw n convex combinations of two or three of the given points, `n x k`."""
    chosen = rng.integers(len(points), size=(n, 3))
    shares = rng.dirichlet(np.full(3, 0.7), size=n)
    return np.asarray(np.einsum("ns,nsk->nk", shares, points[chosen]))


def around(points: Points, n: int, rng: np.random.Generator) -> Points:
    """Draw n points near the given ones: each moves some way towards a random face point.

    The step is log-uniform between 1 % and 50 % of the way, so that every scale of
    neighbourhood is tried and a weight of zero can become positive.
    """
    base = points[rng.integers(len(points), size=n)]
    step = np.exp(rng.uniform(np.log(0.01), np.log(0.5), size=(n, 1)))
    return np.asarray((1.0 - step) * base + step * faces(n, points.shape[1], rng))


def reductions(points: Points, n: int, rng: np.random.Generator) -> Points:
    """Draw n variants of the given points with some of their weights set to zero."""
    base = points[rng.integers(len(points), size=n)].copy()
    drop = rng.random(base.shape) < rng.uniform(0.05, 0.5, size=(n, 1))
    drop[np.arange(n), base.argmax(axis=1)] = False  # one weight has to stay
    base[drop] = 0.0
    return np.asarray(base / base.sum(axis=1, keepdims=True))


def without_negligible(points: Points) -> Points:
    """Weights under `NEGLIGIBLE` set to zero and the rest scaled to sum to 1, `... x k`."""
    kept = np.where(points < min(NEGLIGIBLE, 0.5 / points.shape[-1]), 0.0, points)
    return np.asarray(kept / kept.sum(axis=-1, keepdims=True))


def distance_to_nearest(points: Points, others: Points) -> Points:
    """L1 distance from each of n points to the nearest of the others, `n`.

    L1 is twice the share of weight that has to be moved; infinite if there are no others.
    """
    if len(others) == 0:
        return np.full(len(points), np.inf)
    return np.asarray(cdist(points, others, "cityblock").min(axis=1))
