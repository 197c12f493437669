"""The published scheme in BoTorch's public interface: what the benchmarks measure against.

Points x of the box [0, 1]^k, w = x / Σx; scrambled Sobol starts; per objective a
`SingleTaskGP` on x, fitted anew for every suggestion; (log) noisy expected hypervolume
improvement with 128 samples, maximised from 10 restarts out of 512 raw points.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.optim.optimize import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import SumMarginalLogLikelihood
from numpy.typing import NDArray
from torch import Tensor
from torch.quasirandom import SobolEngine

Array = NDArray[np.float64]

RESTARTS, RAW, SAMPLES = 10, 512, 128


def starts(n: int, k: int, seed: int) -> Array:
    """n points of the box, `n x k`."""
    return SobolEngine(k, scramble=True, seed=seed).draw(n, dtype=torch.float64).numpy()


def weights(x: Array) -> Array:
    """`… x k` points of the box as points of the simplex."""
    total = x.sum(axis=-1, keepdims=True)
    return np.where(total > 0.0, x / np.where(total > 0.0, total, 1.0), 1.0 / x.shape[-1])


def suggest(points: Array, values: Array, reference: Array, seed: int) -> Array:
    """The next point of the box, `k`.

    Args:
        points: `n x k`; points of the box evaluated.
        values: `n x m`; their values, to be maximised.
        reference: `m`; the reference point of the hypervolume.
        seed: Of every random choice.
    """
    x, y = torch.as_tensor(points), torch.as_tensor(values)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        models = [SingleTaskGP(x, y[:, j : j + 1]) for j in range(y.shape[1])]
        model = ModelListGP(*models)
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        promise = qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=torch.as_tensor(reference),
            X_baseline=x,
            sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
            prune_baseline=True,
        )
        bounds = torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])])
        found: Tensor
        found, _ = optimize_acqf(
            promise, bounds=bounds, q=1, num_restarts=RESTARTS, raw_samples=RAW
        )
    return np.asarray(found[0].detach().numpy())
