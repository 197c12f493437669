"""`ema`: the exponential moving average over the trajectory.

.. [Polyak1992] B. Polyak, A. Juditsky. Acceleration of Stochastic Approximation by
   Averaging. SIAM Journal on Control and Optimization, 1992.
"""

from __future__ import annotations

import dataclasses

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
    """The best of the averages w_i ∝ decay^(k − 1 − i), members in order of their steps.

    Each decay of `DECAYS` is one evaluation; a smaller budget tries every so manieth, the
    uniform average first. Equal ones: the slower decay.

    Raises:
        MemberError: If the members are of several trajectories, which have no one order.
    """
    if len({member.trajectory for member in pool.members}) > 1:
        raise MemberError(
            "ema weighs the members along one trajectory; these are of several.",
            "Leave it out, or take the members of one trajectory.",
        )
    k = len(pool)
    places = np.linspace(0, len(DECAYS) - 1, min(len(DECAYS), budget)).round().astype(int)
    decays = [DECAYS[i] for i in places]
    best = decays[0]
    evaluator.prefetch(decayed(k, decay) for decay in decays)
    for decay in decays[1:]:
        if evaluator.better(evaluator(decayed(k, decay)), evaluator(decayed(k, best))):
            best = decay
    result = FusionResult.of(decayed(k, best), evaluator)
    return dataclasses.replace(result, details={"decay": best, "decays": decays})


def decayed(k: int, decay: float) -> FusionWeights:
    """Weights of k members, each `decay` times the one that follows it."""
    if decay == 1.0:
        return FusionWeights.uniform(k)  # the same bits as everywhere, so evaluated once
    return FusionWeights.normalised(decay ** (k - 1 - i) for i in range(k))
