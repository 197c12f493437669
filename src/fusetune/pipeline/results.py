"""results.json: every method × split × metric, with interval, evaluations and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.bootstrap import bootstrap_counts, intervals, paired_difference
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.points import to_json
from fusetune.methods.method import FusionResult
from fusetune.tasks.task import Explaining, SplitName, Task

SPLITS: tuple[SplitName, SplitName] = ("validation", "test")


def build_results(
    results: Mapping[str, FusionResult],
    chosen: str,
    task: Task,
    evaluators: Mapping[SplitName, Evaluator],
    *,
    version: str,
    seed: int,
    members: int,
) -> dict[str, Any]:
    """The content of results.json; the test split is evaluated here and nowhere else.

    Args:
        results: What each method chose.
        chosen: The method whose w became the fused model.
        task: Gives labels and metrics.
        evaluators: One per split.
        version: Of fusetune.
        seed: Of the run; of the bootstrap as well.
        members: k.
    """
    primary = evaluators["validation"].primary.name
    counts = {split: bootstrap_counts(len(task.splits[split]), seed=seed) for split in SPLITS}
    methods: dict[str, Any] = {}
    for name, result in results.items():
        methods[name] = {
            **{
                split: _measured(result, task, split, evaluators[split], counts[split])
                for split in SPLITS
            },
            "evaluations": result.evaluations,
            "seconds": result.seconds,
            "weights": None,  # unless the method stays on the simplex
            **to_json(result.point),
        }
    return {
        "fusetune": version,
        "task": task.name,
        "seed": seed,
        "primary": primary,
        "about": dict(task.about) if isinstance(task, Explaining) else {},
        "members": members,
        "chosen": chosen,
        "methods": methods,
        "comparison": {
            name: _compared(results[chosen], result, task, evaluators["test"], counts["test"])
            for name, result in results.items()
            if name != chosen
        },
    }


def _measured(
    result: FusionResult,
    task: Task,
    split: SplitName,
    evaluator: Evaluator,
    counts: NDArray[np.float64],
) -> dict[str, dict[str, float]]:
    evaluation = evaluator(result.point)
    assert evaluation.outputs is not None  # a task's scorer keeps them
    labels = task.splits[split].labels
    found = intervals(evaluation.values, evaluation.outputs, labels, task.resample, counts)
    return {name: asdict(interval) for name, interval in found.items()}


def _compared(
    chosen: FusionResult,
    rival: FusionResult,
    task: Task,
    evaluator: Evaluator,
    counts: NDArray[np.float64],
) -> dict[str, float]:
    """The chosen method minus a rival, paired, in the primary metric on test."""
    a, b = evaluator(chosen.point), evaluator(rival.point)
    assert a.outputs is not None
    assert b.outputs is not None
    name = evaluator.primary.name
    difference = paired_difference(
        name,
        (a.values[name], a.outputs),
        (b.values[name], b.outputs),
        task.splits["test"].labels,
        task.resample,
        counts,
    )
    return {
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
    }
