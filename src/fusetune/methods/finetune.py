"""`finetune`: the best single checkpoint, the usual practice."""

from __future__ import annotations

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop


def finetune(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """The checkpoint with the best primary metric; equal ones are told apart by their loss."""
    k = len(pool)
    evaluator.prefetch(starting_points(k))
    first, *others = pool.trained
    best = FusionWeights.one_hot(first, k)
    for i in others:
        candidate = FusionWeights.one_hot(i, k)
        if evaluator.better(evaluator(candidate), evaluator(best)):
            best = candidate
    return FusionResult.of(best, evaluator)
