"""`otfusion`: the uniform average of members whose neurons and heads were aligned first.

.. [Singh2020] S. P. Singh, M. Jaggi. Model Fusion via Optimal Transport. NeurIPS 2020.
.. [Imfeld2023] M. Imfeld et al. Transformer Fusion with Optimal Transport. ICLR 2024,
   arXiv:2310.05719.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.aligned import Movement, aligned_average
from fusetune.members.points import OwnModel, Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop


def otfusion(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
    regularisation: float | None = None,
) -> FusionResult:
    """Align every member to the first by optimal transport, then average [Singh2020].

    One evaluation, no choice. The result is a model of its own, unless every neuron and
    head is best matched with its own place: then it is the uniform average, with the same
    bits as `swa`, and a note says so.

    `details` has, for "neurons" and "heads", the units of a member, how many of them moved
    and the mean squared distance of a unit to the first member's before and after, each with
    one entry for every member but the first.

    Args:
        pool: The k members.
        evaluator: f on the validation split.
        budget: As for every method; one evaluation is needed.
        seed: Not used: nothing is random.
        loop: Not used.
        origin: Not used.
        regularisation: None for exact plans, which are permutations and leave what a member
            computes unchanged; a share of the largest cost (0.01, say) for the soft plans of
            [Imfeld2023].

    Raises:
        StageError: If the members' architecture is not supported.
    """
    started = time.perf_counter()
    average = aligned_average(pool, regularisation=regularisation)
    unchanged = regularisation is None and average.moved == 0
    point: Point = (
        FusionWeights.uniform(len(pool)) if unchanged else OwnModel.of(average.tensors)
    )
    seconds = time.perf_counter() - started
    result = FusionResult.of(point, evaluator)
    details: dict[str, object] = {
        "reference": pool.names[0],
        **{kind: _shown(movements) for kind, movements in average.movements.items()},
    }
    if unchanged:
        details["notes"] = [
            "otfusion is the uniform average: in every member, each neuron and head is nearest "
            f"to its own place in {pool.names[0]}."
        ]
    return dataclasses.replace(result, seconds=result.seconds + seconds, details=details)


def _shown(movements: Sequence[Movement]) -> dict[str, object]:
    return {
        "units": movements[0].units,
        "moved": [m.moved for m in movements],
        "distance_before": [_number(m.distances[0]) for m in movements],
        "distance_after": [_number(m.distances[1]) for m in movements],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN, which a member that diverged brings in."""
    return value if math.isfinite(value) else None
