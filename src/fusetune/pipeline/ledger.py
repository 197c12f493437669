"""What a run cost, by stage: seconds, and bytes of members read or written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.store import spent
from fusetune.members.pool import MemberPool
from fusetune.optimization.recording import SUGGEST_SECONDS
from fusetune.pipeline.context import Context

Cost = dict[str, float]


def ledger(
    context: Context, pool: MemberPool, trials: Iterable[FrozenTrial]
) -> dict[str, Cost]:
    """Stage → its seconds and bytes, also of what earlier processes of the run did.

    "search" and "train" have their trainings (bytes: the members written), "load" reading
    the members, "average" and "evaluate" all evaluations on every split, "suggest" the
    sampler of the fusion weights, "write" the fused model.

    Args:
        context: Of the run, which has been fused.
        pool: The members.
        trials: Of the search over w.
    """
    folder = context.folder
    stages: dict[str, Any] = {s: folder.recorded(s) or {} for s in ("search", "train", "fuse")}
    evaluated = spent(folder.evaluations)
    done = [t for t in trials if t.state is not TrialState.RUNNING]
    return {
        "search": _cost(stages["search"].get("seconds", 0.0)),
        "train": _cost(stages["train"].get("seconds", 0.0), pool.nbytes),
        "load": _cost(**stages["fuse"]["load"]),
        "average": _cost(evaluated.averaging, evaluated.read),
        "evaluate": _cost(evaluated.evaluating),
        "suggest": _cost(sum(t.user_attrs.get(SUGGEST_SECONDS, 0.0) for t in done)),
        "write": _cost(**stages["fuse"]["write"]),
    }


def _cost(seconds: float, bytes: int = 0) -> Cost:
    return {"seconds": float(seconds), "bytes": bytes}
