"""Evaluations of w → one Gaussian process per objective, all in closed form.

Notation: n points, b new ones, k members, m objectives; W: `n x k`, Y: `n x m`, float64,
every column of Y to be maximised.

All members share one lengthscale. The likelihood then has two parameters left, lengthscale
and share of noise (mean, factor of the prior and scale have closed forms), so that it is
maximised on a grid: the same optimum every time, nothing that can fail to converge, and
hundredths of a second where a gradient search for a lengthscale per member takes seconds.
The price is that members cannot differ in how much they matter.

.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapters 2.2, 2.7, 5.4.1 and 5.4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["matern", "rbf"]

# Distances on the simplex are between 0 and √2.
LENGTHSCALES = torch.logspace(-1.0, 1.0, 25, dtype=torch.float64)
NOISES = torch.logspace(-6.0, 0.0, 13, dtype=torch.float64)  # variance, as a share of the scale
COARSE = 2  # step of the first look at the lengthscales
ENOUGH = 128  # points from which hyper-parameters are found
LENGTHSCALE_PRIOR = (0.0, 0.75)  # normal distribution of its logarithm: mean, deviation
NOISE_PRIOR = (-4.0, 2.0)
SMALLEST_VARIANCE = 1e-12

FACTOR_PRECISION = 0.05
"""How firmly the factor of a prior is held at 1: the inverse variance of its own prior
distribution, in units of the inverse variance of the process."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Attributes:
    lengthscale: Distance over which values are alike.
    noise: Variance of what the process does not explain, in units of the data.
    mean: Constant mean, in units of the data.
    scale: Variance of the process, in units of the data.
    factor: Of the prior in the mean function; 0 without one.
    """

    lengthscale: float
    noise: float
    mean: float
    scale: float
    factor: float = 0.0


def distances(W1: Tensor, W2: Tensor, *, exact: bool = True) -> Tensor:
    """Euclidean distances, `n1 x n2`; not `exact`: to some 1e-8, and several times faster."""
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(W1, W2, compute_mode=mode)


def correlation(r: Tensor, lengthscale: float, kernel: Kernel) -> Tensor:
    """Prior correlations of points at distances r: Matérn 5/2, or squared exponential."""
    if kernel == "rbf":
        return torch.exp(-0.5 / lengthscale**2 * r.square())
    a = r * (math.sqrt(5.0) / lengthscale)
    return (1.0 + a + a.square() / 3.0).mul_(torch.exp(-a))


class Process:
    """The posterior of one objective.

    Args:
        W: `n x k`; points evaluated.
        y: `n`; their values.
        hyperparameters: Of the process.
        kernel: Its correlations.
        prior: `n`; values of the mean function at W; None for a constant mean.

    Raises:
        torch.linalg.LinAlgError: If the covariance matrix is numerically singular.
    """

    def __init__(
        self,
        W: Tensor,
        y: Tensor,
        hyperparameters: Hyperparameters,
        kernel: Kernel = "matern",
        prior: Tensor | None = None,
    ) -> None:
        self.W = W
        self.hyperparameters = h = hyperparameters
        self.kernel = kernel
        K = correlation(distances(W, W), h.lengthscale, kernel)
        K.diagonal().add_(max(h.noise / h.scale, NOISES[0].item()))
        self._L = torch.linalg.cholesky(K)
        residual = (y - self.mean_function(prior, len(W)))[:, None]
        self._alpha = torch.cholesky_solve(residual, self._L)

    def left_out(self, rows: Tensor) -> Tensor:
        """Log densities of some values, each predicted from all others, up to a constant.

        In closed form [Rasmussen2006]_ (5.10 to 5.12).

        Args:
            rows: Which of the n points, `t`.
        """
        precision = torch.cholesky_inverse(self._L).diagonal()[rows]
        error = self._alpha[rows, 0] / precision
        variance = (self.hyperparameters.scale / precision).clamp_min(SMALLEST_VARIANCE)
        return -0.5 * (variance.log() + error.square() / variance)

    def mean_function(self, prior: Tensor | None, b: int) -> Tensor:
        """What is expected before any value is seen, `b`."""
        h = self.hyperparameters
        constant = torch.full((b,), h.mean, dtype=torch.float64)
        return constant if prior is None else constant + h.factor * prior

    def predict(
        self, points: Tensor, prior: Tensor | None = None, r: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the process (without noise) at `b x k` points, `b` each.

        Args:
            points: `b x k`.
            prior: `b`; values of the mean function there.
            r: `b x n`; distances from W, if they are known already.
        """
        r = distances(points, self.W, exact=False) if r is None else r
        h = self.hyperparameters
        k = correlation(r, h.lengthscale, self.kernel)
        mean = self.mean_function(prior, len(points)) + (k @ self._alpha)[:, 0]
        white = torch.linalg.solve_triangular(self._L, k.T, upper=False)
        variance = h.scale * (1.0 - white.square().sum(0))
        return mean, variance.clamp_min(h.scale * SMALLEST_VARIANCE)


def column(prior: Tensor | None, j: int) -> Tensor | None:
    """One objective's part of a mean function, if there is one."""
    return None if prior is None else prior[:, j]


def fit(
    W: Tensor, Y: Tensor, kernel: Kernel = "matern", prior: Tensor | None = None
) -> list[Process]:
    """The posterior of each of m objectives at its most probable hyper-parameters.

    Args:
        W: `n x k`.
        Y: `n x m`.
        kernel: Of all of them.
        prior: `n x m`; values of the mean functions at W.

    Raises:
        torch.linalg.LinAlgError: If a covariance matrix is numerically singular.
    """
    found = fit_hyperparameters(W, Y, kernel, prior)
    return [Process(W, Y[:, j], h, kernel, column(prior, j)) for j, h in enumerate(found)]


def fit_hyperparameters(
    W: Tensor, Y: Tensor, kernel: Kernel = "matern", prior: Tensor | None = None
) -> list[Hyperparameters]:
    """The most probable hyper-parameters for each of the m objectives, from a grid.

    The log posterior of lengthscale and noise share, with mean μ, factor and scale s² at
    their optimum [Rasmussen2006]_: −½ n log s² − ½ log |C| + log prior, where C = K +
    noise·I. The factor of the prior has a normal distribution of its own about 1.

    Of more than `ENOUGH` points, as many are taken, evenly over their order.
    """
    if len(W) > ENOUGH:
        chosen = torch.linspace(0, len(W) - 1, ENOUGH).round().long()
        W, Y, prior = W[chosen], Y[chosen], None if prior is None else prior[chosen]
    r = distances(W, W)
    seen = {i: _profile(r, Y, kernel, prior, i) for i in range(0, len(LENGTHSCALES), COARSE)}
    found = []
    for j in range(Y.shape[1]):
        coarse = max(seen, key=lambda i: seen[i].best(j))
        for i in range(coarse - COARSE + 1, coarse + COARSE):
            if i not in seen and 0 <= i < len(LENGTHSCALES):
                seen[i] = _profile(r, Y, kernel, prior, i)
        i = max(seen, key=lambda i: seen[i].best(j))
        found.append(seen[i].hyperparameters(LENGTHSCALES[i].item(), j))
    return found


@dataclass(frozen=True, slots=True)
class _Profile:
    """At one lengthscale, for e shares of noise and m objectives, `e x m` each."""

    posterior: Tensor
    mean: Tensor
    factor: Tensor
    scale: Tensor

    def best(self, j: int) -> float:
        return self.posterior[:, j].max().item()

    def hyperparameters(self, lengthscale: float, j: int) -> Hyperparameters:
        e = int(self.posterior[:, j].argmax())
        scale = self.scale[e, j].item()
        noise = NOISES[e].item() * scale
        mean, factor = self.mean[e, j].item(), self.factor[e, j].item()
        return Hyperparameters(lengthscale, noise, mean, scale, factor)


def _profile(
    r: Tensor, Y: Tensor, kernel: Kernel, prior: Tensor | None, place: int
) -> _Profile:
    """One eigendecomposition of K serves all shares of noise and all objectives."""
    lengthscale = LENGTHSCALES[place]
    n = len(Y)
    eigenvalues, Q = torch.linalg.eigh(correlation(r, lengthscale.item(), kernel))
    spectrum = eigenvalues.clamp_min(0.0) + NOISES[:, None]  # e x n
    precision = 1.0 / spectrum
    one, y = Q.sum(0)[:, None], Q.T @ Y  # n x 1, n x m

    def product(a: Tensor, b: Tensor) -> Tensor:  # aᵀ C⁻¹ b, e x m
        weighted: Tensor = precision @ (a * b)
        return weighted

    # Two pseudo-observations with the data's own variance: n = 2 must not collapse.
    observed = Y.var(dim=0, correction=0)
    level = product(one, one)
    mean, squares, factor = product(one, y) / level, product(y, y), torch.zeros(())
    squares = squares - level * mean.square()
    if prior is not None:
        p = Q.T @ prior
        share = product(one, p) / level
        pp = product(p, p) - level * share.square()
        py = product(p, y) - level * share * mean
        factor = (py + FACTOR_PRECISION) / (pp + FACTOR_PRECISION)
        squares = squares - 2.0 * factor * py + factor.square() * pp
        squares = squares + FACTOR_PRECISION * (factor - 1.0).square()
        mean = mean - factor * share
        observed = torch.minimum(observed, (Y - prior).var(dim=0, correction=0))
    observed = observed.clamp_min(SMALLEST_VARIANCE)
    scale = (squares.clamp_min(0.0) + 2.0 * observed) / (n + 2)
    belief = _log_normal(lengthscale, *LENGTHSCALE_PRIOR) + _log_normal(NOISES, *NOISE_PRIOR)
    log_det = spectrum.log().sum(1)
    posterior = -0.5 * (n * scale.log() + log_det[:, None]) + belief[:, None]
    return _Profile(posterior, mean, factor.expand_as(mean), scale)


def _log_normal(x: Tensor, mean: float, deviation: float) -> Tensor:
    # As a density of log x, in which the grid is even: no Jacobian.
    density: Tensor = -0.5 * ((x.log() - mean) / deviation).square()
    return density
