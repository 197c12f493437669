"""Acquisition functions: how much an evaluation somewhere promises.

Notation: n points, d coordinates, m objectives; X: `n x d`, values to be maximised.

.. [Ament2023] S. Ament et al. Unexpected Improvements to Expected Improvement for Bayesian
   Optimization. NeurIPS 2023.
.. [Srinivas2010] N. Srinivas et al. Gaussian Process Optimization in the Bandit Setting: No
   Regret and Experimental Design. ICML 2010.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.monte_carlo import qUpperConfidenceBound
from botorch.models.model import Model
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

Acquisition = Callable[[Tensor], Tensor]
"""`b x 1 x d` points to `b` values, higher is better."""

Name = Literal["logei", "ucb"]

UCB_BETA = 2.0
"""Weight of the variance in UCB, mean + √β · deviation."""

CHUNK = 256  # points valued at once: larger batches leave the processor's cache


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """BoTorch draws from torch's global generator: seed it here, and put it back after."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numerical detail, nothing a user can act on
        torch.manual_seed(seed)
        yield


def single_objective(
    model: Model, X: Tensor, *, name: Name, pending: Tensor | None, samples: int, seed: int
) -> Acquisition:
    """Log noisy expected improvement [Ament2023]_, or the upper bound [Srinivas2010]_.

    Args:
        model: One output.
        X: `n x d`; points evaluated, among which the best so far is.
        name: "logei" or "ucb".
        pending: `p x d`; points under evaluation, whose values are not known yet.
        samples: Posterior samples.
        seed: Of the samples.
    """
    sampler = SobolQMCNormalSampler(torch.Size([samples]), seed=seed)
    if name == "ucb":
        bound: Acquisition = qUpperConfidenceBound(
            model, beta=UCB_BETA, sampler=sampler, X_pending=pending
        )
        return bound
    improvement: Acquisition = qLogNoisyExpectedImprovement(
        model, X, sampler=sampler, X_pending=pending, prune_baseline=True
    )
    return improvement


def values(acquisition: Acquisition, points: Tensor) -> Tensor:
    """The acquisition function at `n x d` points, `n`, without gradients."""
    with torch.no_grad():
        chunks = points.unsqueeze(-2).split(CHUNK)
        return torch.cat([acquisition(chunk) for chunk in chunks])
