"""`mobo`: multi-objective Bayesian optimisation of the fusion weights (MOBO-SWA).

.. [Jang2024] C. Jang et al. Model Fusion through Bayesian Optimization in Language Model
   Fine-Tuning. NeurIPS 2024.
"""

from __future__ import annotations

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.methods.search import search
from fusetune.optimization.samplers import FusionSampler
from fusetune.optimization.study import Loop


def mobo(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """The w with the best primary metric among all that the search evaluated [Jang2024].

    The search starts with every member, the uniform average and the steps of the greedy
    soup, so that the result is never worse on the evaluator's split than `finetune`, `swa`
    or `greedy`, provided that the budget reaches that far (2 k evaluations always do).
    """
    k = len(pool)
    sampler = FusionSampler(k, evaluator.objectives, seed=seed)
    return search("mobo", sampler, evaluator, k=k, budget=budget, loop=loop)
