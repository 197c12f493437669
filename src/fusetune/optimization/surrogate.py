"""Trials → a Gaussian process over hyper-parameters; the one over w is in `process`.

.. [Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian Optimization
   Performs Great in High Dimensions. ICML 2024.
"""

from __future__ import annotations

from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor


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
