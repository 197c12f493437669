"""The next w: an acquisition function, maximised on the simplex itself.

Notation: k members, n evaluations, m objectives; W: `n x k`, points of the simplex;
Y: `n x m`, to be maximised. Both float64.

Dividing k numbers in [0, 1] by their sum, the usual trick, gives the surrogate a direction
along which nothing changes. Here candidates are points of the simplex, the surrogate
sees w, and refinement moves along the simplex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fusetune.optimization import improvement, pareto, process, simplex
from fusetune.optimization.composite import LOWEST, Composite, OutputModel
from fusetune.optimization.pareto import Values
from fusetune.optimization.prediction import MeanFunction, Prediction
from fusetune.optimization.simplex import Points
from fusetune.optimization.thinning import MOST_FUSION, informative

REACH = 0.75
"""Share of its steps' length that each round of the refinement keeps for the next."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How thoroughly the next w is searched.

    Attributes:
        kernel: Of the surrogate.
        acquisition: Of a single objective; several take the hypervolume improvement.
        candidates: Points that are screened.
        starts: Best points that are refined.
        rounds: Of the refinement.
        moves: Points that are tried in every round.
        apart: Least L1 distance of a suggestion from every evaluated point.
    """

    kernel: process.Kernel = "matern"
    acquisition: Literal["ei", "ucb"] = "ei"
    candidates: int = 1024
    starts: int = 6
    rounds: int = 12
    moves: int = 96
    apart: float = 1e-3


def suggest(
    W: Points,
    Y: Values,
    *,
    seed: int | tuple[int, ...],
    pending: Points | None = None,
    avoid: Points | None = None,
    mean: MeanFunction | None = None,
    outputs: OutputModel[Values] | None = None,
    starts: Points | None = None,
    settings: Settings | None = None,
) -> Points:
    """The w whose evaluation promises most, `k`; a pure function of its arguments.

    One Gaussian process per objective, or a model of the outputs where that predicts better
    (`prediction`); expected hypervolume improvement, or for a single
    objective what the settings name, in closed form; screened over points of the whole
    simplex and around the front, then refined.

    Of more than `thinning.MOST_FUSION` points, the processes know the members, the front, the
    best and the newest.

    Args:
        W: `n x k`; n ≥ 2 points evaluated.
        Y: `n x m`; their values, finite, to be maximised. Reference point and scales come
            from the single members among them, or from all rows if there are none.
        seed: Of every random choice.
        pending: `p x k`; points under evaluation, whose values are not known yet. They count
            with values drawn from what the processes believe of them: with many at once, that
            leads to better fronts than their expectation does.
        avoid: `a x k`; further points that must not be suggested, as their evaluation
            failed. A member among them gets no weight at all.
        mean: The processes' mean function, in the units of Y; constant if None.
        outputs: A model of the outputs of some rows of W, and so of all others.
        starts: `s x k`; points around which to search, beside the front.
        settings: How thoroughly to search.

    Raises:
        torch.linalg.LinAlgError: If the surrogate cannot be fitted.
    """
    settings = settings or Settings()
    rng = np.random.default_rng(seed)
    k = W.shape[1]
    pending, avoid, starts = (
        np.empty((0, k)) if points is None else points for points in (pending, avoid, starts)
    )
    taken = np.vstack([W, pending, avoid])
    broken = avoid[avoid.max(axis=1, initial=0.0) == 1.0].any(axis=0)
    scaled = scale(W, Y)
    members = np.flatnonzero(W.max(axis=1) == 1.0)
    known = np.empty(0, dtype=np.int64) if outputs is None else _rows(outputs.weights, W)
    always = np.unique(np.concatenate([members, pareto.front(scaled), known]))
    kept = informative(scaled.sum(axis=1), MOST_FUSION, always)
    predict = _prediction(W[kept], Y[kept], settings.kernel, mean, outputs)
    promise = _Promise(predict, scaled[kept], pending, settings, rng)

    def fresh(points: Points) -> Points:
        points = np.where(broken, 0.0, points)
        points = points[points.sum(axis=1) > 0.0]
        points = simplex.without_negligible(points)
        return points[simplex.distance_to_nearest(points, taken) > settings.apart]

    centres = np.vstack([W[pareto.front(scaled)], starts])
    pool = fresh(np.vstack([starts, _candidates(centres, settings.candidates, rng)]))
    if len(pool) == 0:  # one member: the simplex is a point
        return np.asarray(W[0])
    values = promise(pool)
    for round_ in range(settings.rounds):
        best = np.argsort(-values, kind="stable")[: settings.starts]
        pool, values = pool[best], values[best]
        reach = REACH**round_
        moved = fresh(_moves(pool, centres, settings.moves, reach, rng))
        pool, values = np.vstack([pool, moved]), np.concatenate([values, promise(moved)])
    return np.asarray(pool[int(values.argmax())])


def from_outputs(
    W: Points, Y: Values, outputs: OutputModel[Values], settings: Settings | None = None
) -> NDArray[np.bool_]:
    """Which of the m objectives `suggest` predicts from the outputs."""
    kernel = (settings or Settings()).kernel
    return _prediction(W, Y, kernel, None, outputs).from_outputs


def axes(W: Points, Y: Values) -> tuple[Values, Values]:
    """Reference point and unit of every objective, from the members where they are known."""
    members = W.max(axis=1) == 1.0
    return pareto.reference_point(Y[members] if members.any() else Y)


def scale(W: Points, Y: Values) -> Values:
    """Y with the reference point at 0 and the members' range as unit, `n x m`.

    Values more than one range below the reference are drawn up to there: how bad a useless
    point is does not matter, and would flatten the surrogate everywhere else.
    """
    reference, span = axes(W, Y)
    return np.asarray(np.maximum((Y - reference) / span, LOWEST))


class _Promise:
    """The acquisition function of one suggestion.

    Args:
        predict: What is expected of any point.
        scaled: `n x m`; the values that have to be surpassed.
        pending: `p x k`; points under evaluation.
        settings: Name the acquisition.
        rng: Of what is believed of the pending points.
    """

    def __init__(
        self,
        predict: Prediction,
        scaled: Values,
        pending: Points,
        settings: Settings,
        rng: np.random.Generator,
    ) -> None:
        self._predict = predict
        self._single = settings.acquisition if scaled.shape[1] == 1 else ""
        y = torch.as_tensor(scaled)
        if len(pending):
            y = torch.cat([y, predict.add_pending(pending, rng)])
        self._best = y.max(dim=0).values
        self._gain = None if self._single else improvement.HypervolumeImprovement(y)

    def __call__(self, points: Points) -> NDArray[np.float64]:
        """`b` values, higher is better."""
        if len(points) == 0:
            return np.empty(0)
        mean, deviation = self._predict(points)
        if self._gain is not None:
            value = self._gain(mean, deviation)
        elif self._single == "ucb":
            value = improvement.upper_bound(mean, deviation)[:, 0]
        else:
            value = improvement.expected_improvement(mean, deviation, self._best)[:, 0]
        return np.asarray(torch.nan_to_num(value, nan=-torch.inf).numpy())


def _prediction(
    W: Points,
    Y: Values,
    kernel: process.Kernel,
    mean: MeanFunction | None,
    outputs: OutputModel[Values] | None,
) -> Prediction:
    """What is expected of any point, scaled."""
    reference, span = axes(W, Y)
    scaled = scale(W, Y)

    def function(points: Points) -> Values:
        assert mean is not None
        return np.asarray(np.maximum((mean(points) - reference) / span, LOWEST))

    composite, rows = None, None
    if outputs is not None:
        rows = _rows(outputs.weights, W)
        composite = Composite(outputs, scaled[rows], reference, span)
    return Prediction(W, scaled, kernel, mean and function, composite, rows)


def _rows(points: Points, W: Points) -> NDArray[np.int64]:
    """The row of W that each point is."""
    places = {w.tobytes(): i for i, w in enumerate(W)}
    return np.array([places[w.tobytes()] for w in points], dtype=np.int64)


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


def _moves(
    points: Points, others: Points, n: int, reach: float, rng: np.random.Generator
) -> Points:
    """Draw n points near the given ones, best first, at most `reach` of the way to somewhere.

    A quarter each: weights multiplied by random factors; weight carried from one member to
    another; a step towards, and one away from, another good point.
    """
    quarter = n // 4
    base = points[(rng.random(4 * quarter) ** 2 * len(points)).astype(int)]
    step = reach * np.exp(rng.uniform(np.log(0.02), 0.0, size=(4 * quarter, 1)))
    a, b, c, d = np.split(base, 4)
    sa, sb, sc, sd = np.split(step, 4)
    k = points.shape[1]
    scaled = a * np.exp(2.0 * sa * rng.normal(size=a.shape))
    rows = np.arange(quarter)
    source = (b * rng.random(b.shape)).argmax(axis=1)
    target = rng.integers(k, size=quarter)
    carried = b.copy()
    amount = sb[:, 0] * b[rows, source]
    carried[rows, source] -= amount
    carried[rows, target] += amount
    all_ = np.vstack([points, others])
    towards = c + sc * (all_[rng.integers(len(all_), size=quarter)] - c)
    away = np.maximum(d - sd * (all_[rng.integers(len(all_), size=quarter)] - d), 0.0)
    moved = np.vstack([scaled, carried, towards, away])
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))
