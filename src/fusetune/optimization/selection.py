"""Which w becomes the fused model, given what a search over w has evaluated.

A metric on a few hundred rows is noisy, and the highest of many noisy values flatters its w:
the rule by which w† is chosen can matter more than the search. All rules here are pure
functions of the evaluations.

Notation: k members, n evaluations, m objectives; W: `n x k`, points of the simplex;
Y: `n x m`, finite, to be maximised.

.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapter 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fusetune.objective import LOSS, Objective
from fusetune.optimization import fusion, process, simplex
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.pareto import (
    MARGIN,
    Values,
    choose,
    primary_index,
    reference_point,
)
from fusetune.optimization.simplex import Points

RULES = ("consensus", "best", "posterior", "knee", "constraint")

AVERAGED = 10
"""How many w the consensus averages; never more than a third of the evaluations."""

LOSS_WEIGHT = 2.0
"""What the standardised loss counts beside the standardised metric."""

NEAREST = 3
"""How many evaluations are named when none keeps the bounds."""


def best(Y: Values, objectives: Sequence[Objective]) -> int:
    """The highest primary metric; ties broken by the loss, then by the earlier row."""
    return choose("best", Y, objectives)


def knee(Y: Values, objectives: Sequence[Objective]) -> int:
    """The point of the front that lies farthest beyond the line through its ends."""
    return choose("knee", Y, objectives)


def consensus(W: Points, Y: Values, objectives: Sequence[Objective]) -> Points:
    """The average of the best w, `k`: a w again, in general one that was not evaluated yet.

    Best are the `AVERAGED` distinct w highest in standardised primary metric minus
    `LOSS_WEIGHT` × standardised loss. What many good w share is kept, the luck of each is not.
    """
    _, first = np.unique(W, axis=0, return_index=True)
    first.sort()  # the earlier of equal scores wins
    score = consensus_score(Y[first], objectives)
    count = min(AVERAGED, max(1, len(first) // 3))
    kept = first[np.argsort(-score, kind="stable")[:count]]
    return simplex.without_negligible(W[kept].mean(axis=0))


def consensus_score(Y: Values, objectives: Sequence[Objective]) -> Values:
    """Standardised primary metric minus `LOSS_WEIGHT` × standardised loss, `n`.

    Values far below the others (a member that diverged) are drawn up to the fence of
    `pareto.reference_point`, or nothing else would have a deviation.
    """
    reference, span = reference_point(Y)
    drawn = np.maximum(Y, reference + MARGIN * span)
    deviation = drawn.std(axis=0)
    z = (drawn - drawn.mean(axis=0)) / np.where(deviation > 0.0, deviation, 1.0)
    primary = primary_index(objectives)
    score = z[:, primary]
    for i, objective in enumerate(objectives):
        if objective.name == LOSS.name and i != primary:
            score = score + LOSS_WEIGHT * z[:, i]  # its sign is turned already
    return np.asarray(score)


def posterior(W: Points, Y: Values, objectives: Sequence[Objective]) -> int:
    """The evaluated w with the highest posterior mean of the primary metric.

    The Gaussian process [Rasmussen2006]_ has noise, so that its mean at a w draws on the values
    of that w's neighbours too. Only evaluated w are considered, none in between.

    Raises:
        torch.linalg.LinAlgError: If the process cannot be fitted.
    """
    primary = primary_index(objectives)
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
