"""`ema`: the exponential moving average over the trajectory.

.. [Polyak1992] B. Polyak, A. Juditsky. Acceleration of Stochastic Approximation by
   Averaging. SIAM Journal on Control and Optimization, 1992.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fusetune.errors import MemberError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop

# From the uniform average to one that gives the last member half of the weight.
DECAYS = (1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5)


def ema(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """The best of the averages w_i ∝ decay^(k − 1 − i), checkpoints in order of their steps.

    Each decay of `DECAYS` is one evaluation; a smaller budget tries every so manieth, the
    uniform average first. Equal ones: the slower decay.

    Raises:
        MemberError: If the members are of several trajectories, which have no one order.
    """
    members = [pool.members[i] for i in pool.trained]
    if len({member.trajectory for member in members}) > 1:
        raise MemberError(
            "ema weighs the members along one trajectory; these are of several.",
            "Leave it out, or take the members of one trajectory.",
        )
    k, count = len(pool), len(members)
    places = np.linspace(0, len(DECAYS) - 1, min(len(DECAYS), budget)).round().astype(int)
    decays = [DECAYS[i] for i in places]
    best = decays[0]
    averages = {decay: _of(decayed(count, decay), pool.trained, k) for decay in decays}
    evaluator.prefetch(averages.values())
    for decay in decays[1:]:
        if evaluator.better(evaluator(averages[decay]), evaluator(averages[best])):
            best = decay
    result = FusionResult.of(averages[best], evaluator)
    return dataclasses.replace(result, details={"decay": best, "decays": decays})


def _of(weights: FusionWeights, indices: Sequence[int], k: int) -> FusionWeights:
    """The same weights on these of k members."""
    values = dict(zip(indices, weights.values, strict=True))
    return FusionWeights(tuple(values.get(i, 0.0) for i in range(k)))


def decayed(k: int, decay: float) -> FusionWeights:
    """Weights of k members, each `decay` times the one that follows it."""
    if decay == 1.0:
        return FusionWeights.uniform(k)  # the same bits as everywhere, so evaluated once
    return FusionWeights.normalised(decay ** (k - 1 - i) for i in range(k))
