"""`oracle`: the best uniform average of any subset of the members. Never a candidate.

It chooses on the split of the evaluator that it is given, which is the test split where it
is meant as an upper mark: that split must not be touched by a method that may be chosen.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.ensemble import Mixture, mixture_of
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.objective import Objective
from fusetune.optimization.study import Loop

MOST = 300  # evaluations after screening
ALL_SUBSETS = 15  # members up to which every subset is screened: 32,767
BEAM = 1024  # subsets of each size that are kept, for more members

Masks = NDArray[np.bool_]  # subsets x k


def oracle(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
    evaluations: int | None = None,
    exact: bool = False,
) -> FusionResult:
    """The best of all 2^k − 1 subsets, by the primary metric; equal ones by the loss.

    All subsets are screened by the mixture of the members' predictions; the single
    members, the uniform average and the most promising others are evaluated. That is a
    lower bound of the true oracle, and `details["exact"]` says so, unless there are no more
    subsets than evaluations. With more than `ALL_SUBSETS` members not every subset is
    screened either, but those that a beam search reaches: the `BEAM` best ones of each
    size, each with one member more.

    Args:
        pool: The k members.
        evaluator: Of the split to choose on.
        budget: As for every method.
        seed: Not used.
        loop: Not used.
        origin: Not used.
        evaluations: How many subsets are evaluated; by default the budget, at most `MOST`.
            The k members and the uniform average are always among them.
        exact: Evaluate every subset.

    Raises:
        StageError: If subsets must be screened and the evaluator's score knows no task.
    """
    k = len(pool)
    evaluator.prefetch(starting_points(k))
    allowed = min(budget, MOST) if evaluations is None else evaluations
    exact = exact or 2**k - 1 <= allowed
    if exact:
        screened = 2**k - 1
        subsets = [s for size in range(1, k + 1) for s in combinations(range(k), size)]
    else:
        masks, order = _screen(mixture_of(evaluator, k), k, evaluator)
        screened = len(masks)
        subsets = [tuple(np.flatnonzero(m).tolist()) for m in _shortlist(masks[order], allowed)]
    best = FusionWeights.one_hot(0, k)
    averages = [FusionWeights.uniform(k, subset) for subset in subsets]
    certain = starting_points(k)  # evaluated together above
    evaluator.prefetch(w for w in averages if w not in certain)
    for candidate in averages:
        if evaluator.better(evaluator(candidate), evaluator(best)):
            best = candidate
    members = [i for i, w in enumerate(best.values) if w > 0.0]
    return dataclasses.replace(
        FusionResult.of(best, evaluator),
        details={
            "screened": screened,
            "subsets": 2**k - 1,
            "exact": exact,
            "members": members,
        },
    )


def _shortlist(masks: Masks, allowed: int) -> Masks:
    """The single members, the uniform average, then the first ones, `allowed` in all."""
    sizes = masks.sum(axis=1)
    k = masks.shape[1]
    certain = (sizes == 1) | (sizes == k)
    others = masks[~certain][: max(0, allowed - k - 1)]
    return np.concatenate([masks[certain], others])


def _screen(ensemble: Mixture, k: int, evaluator: Evaluator) -> tuple[Masks, NDArray[np.intp]]:
    """Subsets and their order, the most promising first."""
    if k <= ALL_SUBSETS:
        masks = (np.arange(1, 2**k)[:, None] >> np.arange(k)) % 2 == 1
        return masks, _order(ensemble, masks, evaluator)
    front = np.eye(k, dtype=np.bool_)
    reached = [front]
    for _ in range(1, k):
        best = front[_order(ensemble, front, evaluator)[:BEAM]]
        grown = (best[:, None, :] | np.eye(k, dtype=np.bool_)).reshape(-1, k)
        grown = grown[grown.sum(axis=1) > best[0].sum()]
        front = np.unique(grown, axis=0)
        reached.append(front)
    masks = np.concatenate(reached)
    return masks, _order(ensemble, masks, evaluator)


def _order(ensemble: Mixture, masks: Masks, evaluator: Evaluator) -> NDArray[np.intp]:
    """By predicted primary metric, where it is predicted, then by loss; undefined ones last."""
    values = ensemble.predict(masks / masks.sum(axis=1, keepdims=True))

    def badness(objective: Objective) -> NDArray[np.float64]:
        predicted = values.get(objective.name, np.zeros(len(masks)))
        return np.nan_to_num(-objective.sign * predicted, nan=np.inf)

    return np.lexsort((badness(evaluator.objectives[0]), badness(evaluator.primary)))
