"""`swa`: the uniform average of all members.

.. [Izmailov2018] P. Izmailov et al. Averaging Weights Leads to Wider Optima. UAI 2018.
"""

from __future__ import annotations

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop


def swa(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """Stochastic weight averaging: one evaluation, no choice [Izmailov2018].

    Of the checkpoints: a base model that is a member too has no weight.
    """
    return FusionResult.of(FusionWeights.uniform(len(pool), pool.trained), evaluator)
