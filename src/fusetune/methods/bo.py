"""`bo`: Bayesian optimisation of the primary metric alone (BO-SWA, the papers' ablation).

.. [Jang2024] C. Jang et al. Model Fusion through Bayesian Optimization in Language Model
   Fine-Tuning. NeurIPS 2024, and its workshop version, Table 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.methods.search import base_starts, search
from fusetune.optimization.fusion import Settings
from fusetune.optimization.samplers import FusionSampler
from fusetune.optimization.study import Loop


def bo(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
    starts: Sequence[FusionWeights] = (),
) -> FusionResult:
    """As `mobo`, but with the primary metric as the only objective [Jang2024].

    RBF kernel and upper confidence bound, on the simplex, from the same starting points. The
    loss is recorded, and tells equal metrics apart, but does not lead the search. `starts`
    are evaluated after the members and the uniform average.
    """
    k = len(pool)
    evaluator.prefetch(starting_points(k))
    sampler = FusionSampler(
        k,
        evaluator.objectives,
        seed=seed,
        settings=Settings(kernel="rbf", acquisition="ucb"),
        primary_only=True,
        further=base_starts(pool),
        given=starts,
        budget=budget,
    )
    return search("bo", sampler, evaluator, k=k, budget=budget, loop=loop)
