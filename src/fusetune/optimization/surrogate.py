"""Evaluations → one Gaussian process per objective.

Notation: n points, d coordinates, m objectives; X: `n x d`, Y: `n x m`, float64, every
column of Y to be maximised.

On the simplex all members share one lengthscale. The likelihood then has two parameters left
(mean and scale have closed forms), so that it is maximised on a grid: the same optimum every
time, nothing that can fail to converge, and hundredths of a second where a gradient search
for a lengthscale per member takes seconds. The price is that members cannot differ in how much
they matter.

.. [Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian Optimization
   Performs Great in High Dimensions. ICML 2024.
.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapters 2.2, 2.7 and 5.4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

Kernel = Literal["matern", "rbf"]

# Distances on the simplex are between 0 and √2.
LENGTHSCALES = torch.logspace(-1.0, 1.0, 25, dtype=torch.float64)
NOISES = torch.logspace(-6.0, 0.0, 13, dtype=torch.float64)  # variance, as a share of the scale
SMALLEST_NOISE = 1e-6  # as gpytorch demands in float64
LENGTHSCALE_PRIOR = (0.0, 0.75)  # normal distribution of its logarithm: mean, deviation
NOISE_PRIOR = (-4.0, 2.0)


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Attributes:
    lengthscale: Distance over which values are alike.
    noise: Variance of what the process does not explain, in units of the data.
    mean: Constant mean, in units of the data.
    scale: Variance of the process, in units of the data.
    """

    lengthscale: float
    noise: float
    mean: float
    scale: float


def correlation(X1: Tensor, X2: Tensor, lengthscale: Tensor, kernel: Kernel) -> Tensor:
    """Prior correlations of two sets of points, `l x n1 x n2`, for each of l lengthscales."""
    r = (
        torch.cdist(X1, X2, compute_mode="donot_use_mm_for_euclid_dist")
        / lengthscale[:, None, None]
    )
    if kernel == "rbf":
        return torch.exp(-0.5 * r.square())
    a = math.sqrt(5.0) * r
    return (1.0 + a + a.square() / 3.0) * torch.exp(-a)


def fit_hyperparameters(
    X: Tensor, Y: Tensor, kernel: Kernel = "matern"
) -> list[Hyperparameters]:
    """The most probable hyper-parameters for each of the m objectives, from a grid.

    The log posterior of lengthscale and noise share, with mean μ and scale s² at their
    optimum [Rasmussen2006]_: −½ n log s² − ½ log |C| + log prior, where C = K + noise·I.
    """
    n = len(X)
    K = correlation(X, X, LENGTHSCALES, kernel)  # l x n x n
    C = K[:, None] + NOISES[:, None, None] * torch.eye(n, dtype=X.dtype)  # l x e x n x n
    L = torch.linalg.cholesky(C)
    # Whitened ones and values: solving once for all objectives, which share X.
    right = torch.cat([torch.ones(n, 1, dtype=X.dtype), Y], dim=1)
    white = torch.linalg.solve_triangular(
        L, right.expand(*L.shape[:2], *right.shape), upper=False
    )
    one, y = white[..., :1], white[..., 1:]
    mean = (one * y).sum(-2) / one.square().sum(-2)  # l x e x m
    squares = (y - mean[..., None, :] * one).square().sum(-2)
    # Two pseudo-observations with the data's own variance: n = 2 must not collapse.
    variance = Y.var(dim=0, correction=0).clamp_min(1e-12)
    scale = (squares + 2.0 * variance) / (n + 2)
    log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    prior = _log_normal(LENGTHSCALES, *LENGTHSCALE_PRIOR)[:, None] + _log_normal(
        NOISES, *NOISE_PRIOR
    )
    posterior = -0.5 * n * scale.log() - log_det[..., None] + prior[..., None]
    best = posterior.flatten(0, 1).argmax(dim=0)  # m
    return [
        Hyperparameters(
            lengthscale=LENGTHSCALES[i // len(NOISES)].item(),
            noise=(NOISES[i % len(NOISES)] * scale.flatten(0, 1)[i, j]).item(),
            mean=mean.flatten(0, 1)[i, j].item(),
            scale=scale.flatten(0, 1)[i, j].item(),
        )
        for j, i in enumerate(best.tolist())
    ]


def _log_normal(x: Tensor, mean: float, deviation: float) -> Tensor:
    # As a density of log x, in which the grid is even: no Jacobian.
    return -0.5 * ((x.log() - mean) / deviation).square()


def fit(X: Tensor, Y: Tensor, kernel: Kernel = "matern") -> ModelListGP:
    """A Gaussian process with one lengthscale for each of the m objectives, ready to ask.

    Raises:
        torch.linalg.LinAlgError: If a covariance matrix is numerically singular.
    """
    models = []
    for j, h in enumerate(fit_hyperparameters(X, Y, kernel)):
        base = RBFKernel() if kernel == "rbf" else MaternKernel(nu=2.5)
        model = SingleTaskGP(
            X,
            Y[:, j : j + 1],
            train_Yvar=torch.full((len(X), 1), max(h.noise, SMALLEST_NOISE), dtype=X.dtype),
            covar_module=ScaleKernel(base),
            mean_module=ConstantMean(),
            outcome_transform=None,
        )
        model.mean_module.constant = h.mean
        model.covar_module.outputscale = h.scale
        model.covar_module.base_kernel.lengthscale = h.lengthscale
        models.append(model.eval())
    return ModelListGP(*models)


def fit_ard(X: Tensor, y: Tensor) -> SingleTaskGP:
    """A Gaussian process with a lengthscale per coordinate, for a handful of parameters.

    Matérn 5/2, lengthscale prior scaled with the dimension [Hvarfner2024]_, values
    standardised; hyper-parameters by BoTorch's own search.

    Args:
        X: `n x d`, in the unit cube.
        y: `n x 1`.

    Raises:
        botorch.exceptions.errors.ModelFittingError: If no start of the search converges.
    """
    kernel = get_covar_module_with_dim_scaled_prior(X.shape[1], use_rbf_kernel=False)
    model = SingleTaskGP(X, y, covar_module=kernel)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model
