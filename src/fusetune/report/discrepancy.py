"""Whether loss and metric agree about which w is better: the papers' discrepancy.

Where they agree, one objective would do. The papers' reason for optimising both is that
they do not: the w of lowest loss is not the one of best metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fusetune.evaluation.ranks import rank_correlation
from fusetune.objective import LOSS, Objective
from fusetune.report.content import EvaluationRow
from fusetune.report.wording import metric_label, number


def discrepancy(
    evaluations: Sequence[EvaluationRow], objectives: Sequence[Objective], primary: str
) -> dict[str, Any]:
    """Rank correlation of the loss and each metric over the evaluated w, on validation.

    Args:
        evaluations: Every distinct w that was evaluated.
        objectives: Loss first, then the metrics.
        primary: Name of the primary metric.

    Returns:
        The entry of results.json. Signs are turned so that more is better in both: 1 says
        that loss and metric put all w in the same order, 0 that they have nothing to do
        with each other. Empty without a loss, a metric, or two evaluations.
    """
    loss = next((o for o in objectives if o.name == LOSS.name), None)
    metrics = [o for o in objectives if o.name != LOSS.name]
    if loss is None or not metrics or len(evaluations) < 2:
        return {}
    entry: dict[str, Any] = {"split": "validation", "n": len(evaluations), "primary": primary}
    entry["metrics"] = {
        metric.name: _compared([e.values for e in evaluations], loss, metric)
        for metric in metrics
    }
    return entry


def _compared(
    values: Sequence[Mapping[str, float]], loss: Objective, metric: Objective
) -> dict[str, Any]:
    measured = [v for v in values if loss.name in v and metric.name in v]
    found = rank_correlation(
        [loss.sign * v[loss.name] for v in measured],
        [metric.sign * v[metric.name] for v in measured],
    )

    def best(by: Objective, then: Objective) -> float | None:
        ranked = max(
            measured,
            key=lambda v: (by.sign * v[by.name], then.sign * v[then.name]),
            default=None,
        )
        return None if ranked is None else ranked[metric.name]

    return {**asdict(found), "at_best_loss": best(loss, metric), "best": best(metric, loss)}


def sentence(entry: Mapping[str, Any]) -> str:
    """The primary metric's discrepancy in words; empty if there is none to tell.

    Args:
        entry: As `discrepancy` gives it.
    """
    if not entry or entry.get("primary") not in entry.get("metrics", {}):
        return ""
    name = str(entry["primary"])
    found, label = entry["metrics"][name], metric_label(name)
    n = found["n"]
    if found["spearman"] is None:
        return (
            f"Whether loss and {label} agree cannot be said: over the {n} evaluated w, one of "
            "them is always the same."
        )
    return (
        f"Loss and {label} put the {n} evaluated w in the same order with a rank correlation "
        f"of {found['spearman']:.2f} (Spearman; Kendall {found['kendall']:.2f}) on "
        f"{entry['split']}, where 1 is full agreement and 0 none. The w of lowest loss has "
        f"{label} {number(found['at_best_loss'])}; the best is {number(found['best'])}."
    )
