"""The next λ: Sobol starts, then an acquisition function over a mixed space.

Notation: n trials, d coordinates of the unit cube (`cube.Cube`); X: `n x d`, y: `n`, to be
maximised.

.. [Owen1998] A. B. Owen. Scrambling Sobol' and Niederreiter-Xing points. Journal of
   Complexity 14, 1998.
"""

from __future__ import annotations

import numpy as np
import torch
from botorch.generation.gen import gen_candidates_scipy
from numpy.typing import NDArray
from torch.quasirandom import SobolEngine

from fusetune.optimization import acquisition, pareto, surrogate
from fusetune.optimization.cube import Array, Cube
from fusetune.optimization.thinning import MOST, informative

SCREENED = 512  # Sobol points; half as many again are near the best trials
REFINED = 5
SAMPLES = 128
BLOCK = 1024  # points that others are compared with at a time
SAME = 1e-6  # coordinates closer than this are the same point


def start(cube: Cube, index: int, *, seed: int, taken: Array) -> Array:
    """The starting point with that index of a scrambled Sobol sequence [Owen1998]_, `d`.

    Where it coincides with a point of `taken`, the next one of the sequence that does
    not takes its place; in a small discrete space there may be none.
    """
    engine = SobolEngine(cube.dimension, scramble=True, seed=seed)
    engine.fast_forward(index)
    points = cube.snap(engine.draw(256, dtype=torch.float64).numpy())
    fresh = points[_is_fresh(points, taken)]
    return np.asarray(fresh[0] if len(fresh) else points[0])


def suggest(
    cube: Cube,
    X: Array,
    y: Array,
    *,
    seed: int | tuple[int, ...],
    name: acquisition.Name = "logei",
    pending: Array | None = None,
) -> Array:
    """The point whose evaluation promises most, `d`; a pure function of its arguments.

    Of more than `thinning.MOST` points, the surrogate knows the best and the newest.

    Args:
        cube: The search space.
        X: `n x d`; n ≥ 1 points evaluated.
        y: `n`; their values, finite, to be maximised.
        seed: Of every random choice.
        name: "logei" or "ucb".
        pending: `p x d`; points under evaluation, whose values are not known yet.

    Raises:
        botorch.exceptions.errors.ModelFittingError: If the surrogate cannot be fitted.
    """
    rng = np.random.default_rng(seed)
    pending = np.empty((0, cube.dimension)) if pending is None else pending
    taken = np.vstack([X, pending])
    # A diverged run is worth no more attention than a bad one: see `pareto.reference_point`.
    reference, span = pareto.reference_point(y[:, None])
    y = np.maximum(y, reference[0] - span[0])

    pool = _candidates(cube, X[np.argsort(-y, kind="stable")], rng)
    fresh = pool[_is_fresh(pool, taken)]
    pool = fresh if len(fresh) else pool  # every point of the space has been tried
    kept = informative(y, MOST)
    X, y = X[kept], y[kept]
    with acquisition.reproducible(int(rng.integers(2**31))):
        model = surrogate.fit_ard(torch.as_tensor(X), torch.as_tensor(y)[:, None])
        promise = acquisition.single_objective(
            model,
            torch.as_tensor(X),
            name=name,
            pending=torch.as_tensor(pending) if len(pending) else None,
            samples=SAMPLES,
            seed=int(rng.integers(2**31)),
        )
        screened = _best_first(promise, pool)[:REFINED]
        refined = cube.snap(_refine(promise, screened, cube))
        refined = refined[_is_fresh(refined, taken)]
        return np.asarray(_best_first(promise, np.vstack([refined, screened[:1]]))[0])


def _candidates(cube: Cube, best_first: Array, rng: np.random.Generator) -> Array:
    """Points all over the cube and near the best trials; all of a small discrete space."""
    if (everything := cube.enumerate(limit=2 * SCREENED)) is not None:
        return everything
    engine = SobolEngine(cube.dimension, scramble=True, seed=int(rng.integers(2**31)))
    everywhere = engine.draw(SCREENED, dtype=torch.float64).numpy()
    centres = best_first[rng.integers(min(3, len(best_first)), size=SCREENED // 2)]
    near = np.clip(centres + rng.normal(scale=0.1, size=centres.shape), 0.0, 1.0)
    # One-hot coordinates stay or change as a whole, which small steps would not do.
    change = rng.random(near.shape) < 0.2
    near = np.where(change & cube.discrete, rng.random(near.shape), near)
    return np.unique(cube.snap(np.vstack([everywhere, near])), axis=0)


def _is_fresh(points: Array, taken: Array) -> NDArray[np.bool_]:
    fresh = np.ones(len(points), dtype=bool)
    for first in range(0, len(taken), BLOCK):  # all at once would be gigabytes
        part = taken[None, first : first + BLOCK]
        differs = np.abs(points[:, None, :] - part).max(axis=-1, initial=0.0) > SAME
        fresh &= differs.all(axis=1)
    return fresh


def _best_first(promise: acquisition.Acquisition, points: Array) -> Array:
    values = acquisition.values(promise, torch.as_tensor(points)).numpy()
    return np.asarray(points[np.argsort(-values, kind="stable")])


def _refine(promise: acquisition.Acquisition, points: Array, cube: Cube) -> Array:
    """Continuous coordinates follow the gradient; the others stay as they are."""
    if cube.discrete.all():
        return points
    pinned = torch.as_tensor(cube.discrete)
    starts = torch.as_tensor(points)[:, None, :]
    refined, _ = gen_candidates_scipy(
        starts,
        promise,  # type: ignore[arg-type]  # a callable is all that it uses
        lower_bounds=torch.where(pinned, starts, 0.0),
        upper_bounds=torch.where(pinned, starts, 1.0),
        options={"maxiter": 50},
        use_parallel_mode=False,  # bounds of their own for every start
    )
    return np.asarray(refined[:, 0, :].detach().numpy())
