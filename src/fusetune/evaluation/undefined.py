"""Where a metric is not defined: constant labels, constant predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.objective import Objective
from fusetune.tasks.task import Outputs

CORRELATIONS = frozenset({"matthews_correlation", "pearson", "spearman"})
"""Metrics that divide by a deviation; `tasks.metrics` gives them the value 0 where it is 0."""


def constant_labels(labels: NDArray[Any]) -> bool:
    """Whether all labels of a split are the same."""
    return len(labels) > 0 and bool((labels == labels[0]).all())


def constant_predictions(outputs: Outputs) -> bool:
    """Whether a model says the same of every example: one class, or one number."""
    predictions = np.asarray(outputs.predictions)
    if predictions.ndim != 2 or len(predictions) == 0 or predictions.dtype.kind != "f":
        return False
    said = predictions[:, 0] if predictions.shape[1] == 1 else predictions.argmax(axis=1)
    return bool((said == said[0]).all())


def notes(
    split: str,
    labels: NDArray[Any],
    models: Iterable[tuple[str, Outputs | None]],
    objectives: Sequence[Objective],
) -> list[str]:
    """What the report has to say about metrics that are not defined on a split.

    Args:
        split: Its name.
        labels: `n`.
        models: Name → what the model said of the split.
        objectives: What is measured.
    """
    without_value = [o.name for o in objectives if o.name in CORRELATIONS]
    counts = f"; {' and '.join(without_value)} not defined there, counted as 0"
    end = counts if without_value else ""
    if constant_labels(labels):
        return [f"All {len(labels)} labels of {split} are the same{end}."]
    constant = [n for n, said in models if said is not None and constant_predictions(said)]
    if not constant:
        return []
    return [f"On {split} one answer to every example from {', '.join(constant)}{end}."]
