"""Trials → a Gaussian process over many coordinates; the one over w is in `process`.

.. [Eriksson2021] D. Eriksson, M. Jankowiak. High-Dimensional Bayesian Optimization with
   Sparse Axis-Aligned Subspaces. UAI 2021.

.. [Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian Optimization
   Performs Great in High Dimensions. ICML 2024.
"""

from __future__ import annotations

from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.map_saas import add_saas_prior
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

SHRINKAGE = 0.1
"""τ of the sparse prior, at the scale of its own half-Cauchy prior. Inferred with the rest, it
made the fit two to four times slower and the model no better."""


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


def fit_sparse(X: Tensor, y: Tensor) -> SingleTaskGP:
    """A Gaussian process in which few coordinates matter, for tens of them.

    Matérn 5/2 with the SAAS prior [Eriksson2021]_: τ / lengthscale² of every coordinate has a
    half-Cauchy distribution, so that most are cut off unless the values speak for them. The
    most probable hyper-parameters take the place of samples, which would need minutes.

    Args:
        X: `n x d`, in the unit cube.
        y: `n x 1`.

    Raises:
        botorch.exceptions.errors.ModelFittingError: If no start of the search converges.
    """
    matern = MaternKernel(nu=2.5, ard_num_dims=X.shape[1]).to(X)
    kernel = ScaleKernel(add_saas_prior(matern, tau=SHRINKAGE))
    model = SingleTaskGP(X, y, covar_module=kernel)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model
