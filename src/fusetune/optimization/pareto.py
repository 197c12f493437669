"""The Pareto front, its hypervolume, and the choice of w† from it.

Notation: n evaluations, m objectives, Y: `n x m` float64, every column to be maximised
(`objective.to_maximise`).

.. [Tukey1977] J. W. Tukey. Exploratory Data Analysis. Addison-Wesley 1977 (the fences).
.. [Das1999] I. Das. On characterizing the "knee" of the Pareto curve based on
   normal-boundary intersection. Structural Optimization 18, 1999.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from numpy.typing import NDArray

from fusetune.errors import RecipeError
from fusetune.objective import Objective, primary_index

Values = NDArray[np.float64]

MARGIN = 0.1
"""How far beyond the worst member the reference point lies, as a share of their range."""


def front(Y: Values) -> NDArray[np.int64]:
    """Indices of the Pareto-optimal rows, in order; the first of equal rows only."""
    if len(Y) == 0:
        return np.empty(0, dtype=np.int64)
    mask = is_non_dominated(torch.as_tensor(Y, dtype=torch.float64), deduplicate=True)
    return np.flatnonzero(mask.numpy())


def reference_point(members: Values) -> tuple[Values, Values]:
    """Where the hypervolume starts, and the length of each axis, found from the members.

    The reference lies 10 % of the members' range beyond the worst of them. A member far
    outside the others (a diverged checkpoint) would stretch the range until differences
    between good points vanish, so the worst is at most one fence, 1.5 interquartile
    ranges, below the lower quartile [Tukey1977]_.

    Args:
        members: `k x m`; the members' own values.

    Returns:
        The reference point and the positive range of each objective, `m` each; an
        objective that does not vary has range 1.
    """
    low, high = members.min(axis=0), members.max(axis=0)
    quarter, three_quarters = np.quantile(members, [0.25, 0.75], axis=0)
    spread = three_quarters - quarter
    fence = np.where(spread > 0.0, quarter - 1.5 * spread, low)
    worst = np.maximum(low, fence)
    span = high - worst
    # Differences of the size of rounding errors are none.
    span = np.where(span > 1e-12 * np.maximum(1.0, np.abs(high)), span, 1.0)
    return worst - MARGIN * span, span


def hypervolume(Y: Values, reference: Values) -> float:
    """Volume between the front of `n x m` values and the reference point, `m`.

    Points that do not exceed the reference in every objective add nothing.
    """
    above = Y[np.greater(Y, reference).all(axis=1)]
    if len(above) == 0:
        return 0.0
    if Y.shape[1] == 1:
        return float(above.max() - reference[0])
    optimal = torch.as_tensor(above[front(above)], dtype=torch.float64)
    volume = Hypervolume(ref_point=torch.as_tensor(reference, dtype=torch.float64))
    return float(volume.compute(optimal))


def hypervolume_curve(Y: Values, reference: Values) -> Values:
    """Hypervolume after the first, second, … evaluation, `n`; it never falls."""
    optimal = np.empty((0, Y.shape[1]))
    curve = np.zeros(len(Y))
    volume = 0.0
    for i, y in enumerate(Y):
        if not (optimal >= y).all(axis=1).any():
            optimal = np.vstack([optimal[~(optimal <= y).all(axis=1)], y])
            volume = max(volume, hypervolume(optimal, reference))
        curve[i] = volume
    return curve


def best_first(
    Y: Values, objectives: Sequence[Objective], score: Values | None = None
) -> NDArray[np.int64]:
    """All rows, the best first: by the primary metric, then by the loss, then in their order.

    Args:
        Y: `n x m`, to be maximised.
        objectives: The m columns, the loss first.
        score: `n`; decides in the place of the primary metric.
    """
    first = Y[:, primary_index(objectives)] if score is None else score
    # The last key is the first to decide; lexsort is stable, so the earlier trial wins.
    return np.asarray(np.lexsort((-Y[:, 0], -first)))


def _best(Y: Values, objectives: Sequence[Objective]) -> int:
    return int(best_first(Y, objectives)[0])


def _knee(Y: Values, objectives: Sequence[Objective]) -> int:
    optimal = front(Y)
    low, high = Y[optimal].min(axis=0), Y[optimal].max(axis=0)
    scaled = (Y[optimal] - low) / np.where(high > low, high - low, 1.0)
    # The plane through the axes' ends has Σ y = 1: the farthest beyond it has most Σ y.
    return int(optimal[int(scaled.sum(axis=1).argmax())])


RULES: Mapping[str, Callable[[Values, Sequence[Objective]], int]] = {
    "best": _best,
    "knee": _knee,
}


def choose(rule: str, Y: Values, objectives: Sequence[Objective]) -> int:
    """The row of `n x m` values whose w becomes the fused model.

    Args:
        rule: "best", the highest primary metric, ties broken by the loss and then by the
            earlier row; or "knee", the point of the front that lies farthest beyond the
            plane through the best values of the single objectives [Das1999]_.
        Y: In the order of the trials; to be maximised.
        objectives: The m columns; the first metric is the primary one.

    Raises:
        RecipeError: If there is no such rule.
        ValueError: If there is nothing to choose from, or a value is not finite.
    """
    if rule not in RULES:
        raise RecipeError(
            f"fuse.choose: the rules are {', '.join(sorted(RULES))}; got {rule!r}.",
            hint="Use one of these.",
        )
    if len(Y) == 0 or not np.isfinite(Y).all():
        raise ValueError(f"One or more finite rows are needed to choose from; got {Y!r}.")
    return RULES[rule](Y, objectives)
