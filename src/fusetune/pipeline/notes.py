"""What the report has to warn of, gathered from all stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.contributions import contributions, hint
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.undefined import notes as undefined
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.models.device import emulated
from fusetune.pipeline.best_trial import RATE
from fusetune.pipeline.halving import Attempt
from fusetune.tasks.task import Remarking, SplitName, Task


def failures(stage: str, trials: Iterable[FrozenTrial]) -> list[str]:
    """One line per failed trial."""
    return [
        f"{stage}: trial {t.number} failed: {t.user_attrs.get('reason', 'unknown')}"
        for t in trials
        if t.state is TrialState.FAIL
    ]


def of_training(record: Mapping[str, Any]) -> list[str]:
    """Trainings that were given up for a lower learning rate, from the record of the stage."""
    found = []
    for trajectory in record.get("trajectories", ()):
        attempts = [Attempt(**entry) for entry in trajectory.get("attempts", ())]
        if not attempts:
            continue
        failed = [attempt for attempt in attempts if not attempt.kept]
        rate = trajectory["params"].get(RATE, attempts[0].learning_rate)
        if attempts[0].kept and len(attempts) > 1:
            found.append(
                "The full training was begun with several learning rates. Its first members, "
                f"on validation: one {', then one '.join(a.text for a in attempts)}. The "
                f"training went on with {rate:.4g}."
            )
            continue
        if not failed:
            continue
        end = (
            f"The members are of the one with {rate:.4g}."
            if len(failed) < len(attempts)
            else f"None reached it; the members are of the best, with {rate:.4g}."
        )
        found.append(
            f"The full training did not keep what the search's trial had promised, "
            f"{failed[0].promised:.4f} on validation: it "
            f"{', then '.join(attempt.text for attempt in failed)}, and was given up. {end}"
        )
    return found


def of_code(trust_remote_code: bool) -> list[str]:
    """Whether code that comes with the model is run."""
    if not trust_remote_code:
        return []
    return ["trust_remote_code is on: code that comes with the model is run."]


def of_precision(precision: str, device: torch.device) -> list[str]:
    """Whether the recipe asks for what this processor can only emulate."""
    if not emulated(precision, device):
        return []
    return [
        f"model.precision: this processor only emulates {precision}; training and evaluation "
        "take about ten times as long as in float32. Take model.precision=auto."
    ]


def of_method(result: FusionResult) -> list[str]:
    """What a method wants the report to say."""
    found = result.details.get("notes", [])
    return [str(note) for note in found] if isinstance(found, list) else []


def of_metrics(
    task: Task,
    evaluators: Mapping[SplitName, Evaluator],
    results: Mapping[str, FusionResult],
    pool: MemberPool,
) -> list[str]:
    """What a task remarks of its models, else metrics that are not defined on a split.

    Members are looked at on validation only, where all of them have been evaluated.
    """
    k = len(pool)
    found = []
    for split, evaluator in evaluators.items():
        models = [(name, evaluator(r.point).outputs) for name, r in results.items()]
        if split == "validation":
            members = enumerate(pool.names)
            models += [(n, evaluator(FusionWeights.one_hot(i, k)).outputs) for i, n in members]
        if isinstance(task, Remarking):
            found += task.remarks(split, [(n, said) for n, said in models if said is not None])
            continue
        labels = task.splits[split].labels
        found += undefined(split, labels, models, evaluator.objectives)
    return found


def of_members(
    evaluator: Evaluator, point: Point, pool: MemberPool
) -> tuple[list[dict[str, Any]], list[str]]:
    """The contribution of each member to the fused model, for results.json, and a hint.

    There are none outside the simplex.
    """
    if not isinstance(point, FusionWeights):
        return [], []
    found = contributions(evaluator, point)
    rows = [
        {
            "member": pool.names[c.member],
            "weight": c.weight,
            "without": dict(c.values),
            "dispensable": c.better,
        }
        for c in found
    ]
    text = hint(found, pool.names)
    return rows, [text] if text else []
