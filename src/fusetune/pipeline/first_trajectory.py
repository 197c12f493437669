"""What the first of several trajectories gives alone: what the others have to improve on."""

from __future__ import annotations

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult


def first_trajectory(pool: MemberPool, evaluator: Evaluator) -> dict[str, FusionResult]:
    """Rows for the tables; none where all members are of one trajectory.

    `trajectory-1.finetune` is its best member, `trajectory-1.swa` the uniform average of its
    members: m evaluations that `finetune` needs as well, and one more. Never candidates.
    """
    first = pool.members[0].trajectory
    own = [i for i, member in enumerate(pool.members) if member.trajectory == first]
    k = len(pool)
    if len(own) == k:
        return {}
    alone = evaluator.fresh()
    best = FusionWeights.one_hot(own[0], k)
    for i in own[1:]:
        candidate = FusionWeights.one_hot(i, k)
        if alone.better(alone(candidate), alone(best)):
            best = candidate
    average = FusionWeights.normalised([1.0 if i in own else 0.0 for i in range(k)])
    name = f"trajectory-{first}"
    return {
        f"{name}.finetune": FusionResult.of(best, alone),
        f"{name}.swa": FusionResult.of(average, evaluator.fresh()),
    }
