"""The next w: an acquisition function, maximised on the simplex itself.

Notation: k members, n evaluations, m objectives; W: `n x k`, points of the simplex;
Y: `n x m`, to be maximised. Both float64.

Dividing k numbers in [0, 1] by their sum, the usual trick, gives the surrogate a direction
along which nothing changes. Here candidates are points of the simplex, the surrogate
sees w, and refinement moves along the simplex.

.. [Kivinen1997] J. Kivinen, M. K. Warmuth. Exponentiated Gradient versus Gradient Descent
   for Linear Predictors. Information and Computation 132, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from botorch.models.model_list_gp_regression import ModelListGP
from torch import Tensor

from fusetune.optimization import acquisition, pareto, simplex, surrogate
from fusetune.optimization.acquisition import Acquisition, Name
from fusetune.optimization.pareto import Values
from fusetune.optimization.simplex import Points


@dataclass(frozen=True, slots=True)
class Settings:
    """How thoroughly the next w is searched.

    Attributes:
        kernel: Of the surrogate.
        acquisition: Of a single objective; several take the hypervolume improvement.
        candidates: Points that are screened.
        samples: Posterior samples of the acquisition function; a quarter from 3 objectives
            on, where the front of every sample costs far more.
        starts: Screened points that are refined.
        steps: Gradient steps of the refinement.
        apart: Least L1 distance of a suggestion from every evaluated point.
    """

    kernel: surrogate.Kernel = "matern"
    acquisition: Name = "logei"
    candidates: int = 512
    samples: int = 32
    starts: int = 6
    steps: int = 20
    apart: float = 1e-3


def suggest(
    W: Points,
    Y: Values,
    *,
    seed: int | tuple[int, ...],
    pending: Points | None = None,
    avoid: Points | None = None,
    settings: Settings | None = None,
) -> Points:
    """The w whose evaluation promises most, `k`; a pure function of its arguments.

    One Gaussian process per objective; log noisy expected hypervolume improvement, or for a
    single objective what the settings name; screened over points of the whole
    simplex and around the front, then refined.

    Args:
        W: `n x k`; n ≥ 2 points evaluated.
        Y: `n x m`; their values, finite, to be maximised. Reference point and scales come
            from the single members among them, or from all rows if there are none.
        seed: Of every random choice.
        pending: `p x k`; points under evaluation, whose values are not known yet.
        avoid: `a x k`; further points that must not be suggested, as their evaluation failed.
        settings: How thoroughly to search.

    Raises:
        torch.linalg.LinAlgError: If the surrogate cannot be fitted.
    """
    settings = settings or Settings()
    rng = np.random.default_rng(seed)
    nothing = np.empty((0, W.shape[1]))
    pending = nothing if pending is None else pending
    taken = np.vstack([W, pending, nothing if avoid is None else avoid])
    scaled = scale(W, Y)

    def fresh(points: Points) -> Points:
        points = simplex.without_negligible(points)
        return points[simplex.distance_to_nearest(points, taken) > settings.apart]

    pool = fresh(_candidates(W[pareto.front(scaled)], settings.candidates, rng))
    if len(pool) == 0:  # one member: the simplex is a point
        return np.asarray(W[0])
    with acquisition.reproducible(int(rng.integers(2**31))):
        X = torch.as_tensor(W)
        model = surrogate.fit(X, torch.as_tensor(scaled), settings.kernel)
        promise = _acquisition(model, X, pending, settings, int(rng.integers(2**31)))
        screened = _best_first(promise, pool)[: settings.starts]
        refined = fresh(_refine(promise, screened, settings.steps))
        return np.asarray(_best_first(promise, np.vstack([refined, screened[:1]]))[0])


def scale(W: Points, Y: Values) -> Values:
    """Y with the reference point at 0 and the members' range as unit, `n x m`.

    Values more than one range below the reference are drawn up to there: how bad a useless
    point is does not matter, and would flatten the surrogate everywhere else.
    """
    members = W.max(axis=1) == 1.0
    reference, span = pareto.reference_point(Y[members] if members.any() else Y)
    return np.asarray(np.maximum((Y - reference) / span, -1.0))


def _acquisition(
    model: ModelListGP, X: Tensor, pending: Points, settings: Settings, seed: int
) -> Acquisition:
    waiting = torch.as_tensor(pending) if len(pending) else None
    if model.num_outputs == 1:
        return acquisition.single_objective(
            model,
            X,
            name=settings.acquisition,
            pending=waiting,
            samples=settings.samples,
            seed=seed,
        )
    few = model.num_outputs > 2
    samples = max(8, settings.samples // 4) if few else settings.samples
    return acquisition.hypervolume_improvement(
        model, X, pending=waiting, samples=samples, seed=seed
    )


def _candidates(optimal: Points, n: int, rng: np.random.Generator) -> Points:
    """About n points of the simplex: everywhere, on faces, and about the front."""
    k = optimal.shape[1]
    sixth = n // 6 + 1
    return np.vstack(
        [
            simplex.dirichlet(sixth // 2, k, 0.3, rng),
            simplex.dirichlet(sixth // 2, k, 1.0, rng),
            simplex.faces(sixth, k, rng),
            simplex.mixtures(optimal, sixth, rng),
            simplex.around(optimal, 2 * sixth, rng),
            simplex.reductions(optimal, sixth, rng),
        ]
    )


def _best_first(promise: Acquisition, points: Points) -> Points:
    values = acquisition.values(promise, torch.as_tensor(points)).numpy()
    return np.asarray(points[np.argsort(-values, kind="stable")])


def _refine(promise: Acquisition, points: Points, steps: int) -> Points:
    """Each point moved uphill along the simplex; the best place each has seen.

    Exponentiated gradient [Kivinen1997]_, w ← w · exp(η g) normalised, with g centred
    and scaled to length one, and η falling from 1 to 0.02. A weight of zero stays zero.
    """
    w = torch.as_tensor(points).clone()
    best, best_value = w.clone(), torch.full((len(w),), -torch.inf, dtype=w.dtype)
    for eta in np.geomspace(1.0, 0.02, steps):
        w.requires_grad_(True)
        value = promise(w.unsqueeze(-2))
        (gradient,) = torch.autograd.grad(value.sum(), w)
        w, value = w.detach(), value.detach()
        better = value > best_value
        best[better], best_value[better] = w[better], value[better]
        centred = gradient - (w * gradient).sum(-1, keepdim=True)
        length = (w.sqrt() * centred).norm(dim=-1, keepdim=True).clamp_min(1e-30)
        w = w * torch.exp((eta * centred / length).clamp(-5.0, 5.0))
        w = w / w.sum(-1, keepdim=True)
    return np.asarray(best.numpy())
