"""Which w becomes the fused model, given what a search over w has evaluated.

A metric on a few hundred rows is noisy, and the highest of many noisy values flatters its w:
the rule by which w† is chosen can matter more than the search. All rules here are pure
functions of the evaluations.

Notation: k members, n evaluations, m objectives; W: `n x k`, points of the simplex;
Y: `n x m`, finite, to be maximised.

.. [Breiman1984] L. Breiman, J. Friedman, R. Olshen, C. Stone. Classification and Regression
   Trees. Wadsworth 1984, section 3.4.3.
.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapter 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fusetune.objective import Objective, primary_index
from fusetune.optimization import fusion, process, simplex
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.pareto import Values, best_first, choose
from fusetune.optimization.simplex import Points

RULES = ("consensus", "best", "posterior", "knee", "constraint")

AVERAGED = 10
"""How many w the consensus averages; never more than a third of the evaluations."""

TOWARDS_UNIFORM = (0.75, 0.5, 0.25)
"""How far a consensus goes towards the uniform average; the first that is good enough."""

ERRORS = 2.0
"""By how many standard errors of the paired difference it may become worse on the way."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far a consensus goes towards its anchor, until it is as good as the best member."""

NEAREST = 3
"""How many evaluations are named when none keeps the bounds."""


def best(Y: Values, objectives: Sequence[Objective]) -> int:
    """The highest primary metric; ties broken by the loss, then by the earlier row."""
    return choose("best", Y, objectives)


def knee(Y: Values, objectives: Sequence[Objective]) -> int:
    """The point of the front that lies farthest beyond the line through its ends."""
    return choose("knee", Y, objectives)


def consensus(
    W: Points, Y: Values, objectives: Sequence[Objective], smooth: Values | None = None
) -> Points:
    """The average of the best w, `k`: a w again, in general one that was not evaluated yet.

    Best are the `AVERAGED` distinct w with the highest smoothed metric, or primary metric
    where there is none; of equal ones those with the lower loss. The smoothed metric owes less
    to the rows at the decision's edge, and the average keeps what many good w share, not the
    luck of each.

    It is the start of a path towards the uniform average, `shrunk`.

    Args:
        W: `n x k`.
        Y: `n x m`.
        objectives: The m columns.
        smooth: `n`; a smoothed form of the primary metric, to be maximised.
    """
    kept = _distinct_first(W, Y, objectives, smooth)
    kept = kept[: min(AVERAGED, max(1, len(kept) // 3))]
    return simplex.without_negligible(W[kept].mean(axis=0))


def shrunk(w: Points, share: float) -> Points:
    """w, a share of the way towards the uniform average, `k`.

    What a search over w finds on some hundred rows is in part the luck of these rows. Of two w
    that the rows cannot tell apart the one nearer to the uniform average, which owes them
    nothing, is to be expected to do better on others: the rule of one standard error
    [Breiman1984]_, with `ERRORS` of them.

    Args:
        w: `k`.
        share: From 0, w itself, to 1.
    """
    return np.asarray((1.0 - share) * w + share / len(w))


def anchor(
    W: Points, Y: Values, objectives: Sequence[Objective], smooth: Values | None = None
) -> int | None:
    """The best w among those no worse than the best member; None if no member is there.

    The consensus goes as far towards it as it must in order to be no worse than that member in
    the primary metric, nor in the loss where the metrics are equal. To drop the consensus at
    once for the highest metric costs most of what it gains: the best member's own metric is
    the highest of several, and lucky too.

    Args:
        W: `n x k`.
        Y: `n x m`.
        objectives: The m columns.
        smooth: `n`; by it, or by the primary metric, the best is found.
    """
    member = best_member_row(W, Y, objectives)
    if member is None:
        return None
    primary = primary_index(objectives)
    above, same = Y[:, primary] > Y[member, primary], Y[:, primary] == Y[member, primary]
    kept = np.flatnonzero(above | (same & (Y[:, 0] >= Y[member, 0])))
    score = None if smooth is None else smooth[kept]
    return int(kept[_distinct_first(W[kept], Y[kept], objectives, score)[0]])


def best_member_row(W: Points, Y: Values, objectives: Sequence[Objective]) -> int | None:
    """The row of the best single member; None if none was evaluated."""
    members = np.flatnonzero(W.max(axis=1) == 1.0)
    return int(members[best(Y[members], objectives)]) if len(members) else None


def best_member(W: Points, Y: Values, objectives: Sequence[Objective]) -> float:
    """The highest primary metric of a single member; −∞ if none was evaluated."""
    row = best_member_row(W, Y, objectives)
    return -np.inf if row is None else float(Y[row, primary_index(objectives)])


def _distinct_first(
    W: Points, Y: Values, objectives: Sequence[Objective], score: Values | None
) -> NDArray[np.int64]:
    """The rows of distinct w, the best first; of equal w the earlier row."""
    _, rows = np.unique(W, axis=0, return_index=True)
    rows.sort()
    order = best_first(Y[rows], objectives, None if score is None else score[rows])
    return np.asarray(rows[order])


def posterior(W: Points, Y: Values, objectives: Sequence[Objective]) -> int:
    """The evaluated w with the highest posterior mean of the primary metric.

    The Gaussian process [Rasmussen2006]_ has noise, so that its mean at a w draws on the values
    of that w's neighbours too. Only evaluated w are considered, none in between. A metric that
    is the same for all of them has no mean to tell them apart: then the loss does.

    Raises:
        torch.linalg.LinAlgError: If the process cannot be fitted.
    """
    primary = primary_index(objectives)
    if not np.ptp(Y[:, primary]):
        return best(Y, objectives)
    X = torch.as_tensor(W)
    (model,) = process.fit(X, torch.as_tensor(fusion.scale(W, Y)[:, [primary]]))
    mean, _ = model.predict(X)
    smoothed = Y.copy()
    smoothed[:, primary] = mean.numpy()
    return best(smoothed, objectives)


def constrained(
    Y: Values, objectives: Sequence[Objective], constraint: Constraint
) -> int | None:
    """The best goal among the rows that keep all bounds; None if no row does.

    Ties are broken by the primary metric, then by the loss, then by the earlier row.
    """
    kept = np.flatnonzero(constraint.excess(Y, objectives) <= 0.0)
    if len(kept) == 0:
        return None
    goal = next(i for i, o in enumerate(objectives) if o.name == constraint.goal)
    tied = kept[Y[kept, goal] == Y[kept, goal].max()]
    return int(tied[best(Y[tied], objectives)])


def nearest(Y: Values, objectives: Sequence[Objective], constraint: Constraint) -> list[int]:
    """The `NEAREST` rows that break the bounds least, in that order."""
    excess = constraint.excess(Y, objectives)
    return [int(i) for i in np.argsort(excess, kind="stable")[:NEAREST]]
