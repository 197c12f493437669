"""A library result → what the report of a run is made of."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from fusetune.members.manifest import read_manifest
from fusetune.members.weights import FusionWeights
from fusetune.objective import to_maximise
from fusetune.optimization.pareto import hypervolume_curve, reference_point
from fusetune.report.content import EvaluationRow, MemberRow, RunRecord

if TYPE_CHECKING:
    from fusetune.library.result import Candidate, Fused


def record_of(result: Fused, title: str) -> RunRecord:
    """The record; it has no test split and no intervals, as nothing is known of examples."""
    best = {candidate.weights for candidate in result.front}
    rows = tuple(
        EvaluationRow(c.weights.values, dict(c.values), c.method, c.weights in best)
        for c in result.candidates
    )
    names = [o.name for o in result.objectives]
    return RunRecord(
        results={
            "fusetune": version("fusetune"),
            "task": title,
            "seed": None,
            "primary": names[min(1, len(names) - 1)],
            "members": len(result.pool),
            "chosen": result.chosen,
            "methods": {n: _entry(n, c, result) for n, c in result.methods.items()},
            "comparison": {},
        },
        objectives=result.objectives,
        members=_members(result),
        evaluations=rows,
        hypervolume=_hypervolume(result),
        cost={"fuse": {"seconds": result.seconds}},
        notes=result.notes,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _entry(name: str, candidate: Candidate, result: Fused) -> dict[str, Any]:
    # What the row would have cost by itself.
    alone = {"finetune": len(result.pool.trained), "swa": 1}
    evaluations = alone.get(name, len(result.candidates))
    return {
        "validation": {n: {"value": v} for n, v in candidate.values.items()},
        "test": {},
        "evaluations": evaluations,
        "seconds": result.seconds * evaluations / len(result.candidates),
        "weights": list(candidate.weights.values),
    }


def _members(result: Fused) -> tuple[MemberRow, ...]:
    known = {c.weights: c.values for c in result.candidates}
    rows = []
    for i, member in enumerate(result.pool.members):
        manifest = read_manifest(member.path)
        values = known.get(FusionWeights.one_hot(i, len(result.pool)), {})
        epoch = manifest.epoch if manifest else None
        rows.append(MemberRow(member.name, dict(values), member.step, epoch, member.trajectory))
    return tuple(rows)


def _hypervolume(result: Fused) -> tuple[float, ...]:
    values = to_maximise([c.values for c in result.candidates], result.objectives)
    single = [i for i, c in enumerate(result.candidates) if max(c.weights.values) == 1.0]
    if len(single) < 2:
        return ()
    reference, span = reference_point(values[single])
    curve = hypervolume_curve((values - reference) / span, np.zeros(values.shape[1]))
    return tuple(float(v) for v in curve)
