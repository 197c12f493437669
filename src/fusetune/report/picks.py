"""What the page needs to show any evaluated mixture and the command that exports it.

The figures of the front carry evaluation numbers, from 1 in the order of
`RunRecord.evaluations`; the page's script finds a point's weights and its rows by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.report.content import RunRecord
from fusetune.report.wording import metric_label

PLACES = 9
"""Decimals to which two mixtures are the same: the sums of weights differ by roundings."""


def picks(record: RunRecord, planes: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    """The mixtures as data for the page's script; None without any to pick from.

    Args:
        record: The run.
        planes: Key of a figure of the front → names of the objectives on its two axes.
    """
    if not planes or not record.evaluations:
        return None
    names = [o.name for o in record.objectives]
    places = places_of(record)
    return {
        "members": list(record.member_names),
        "objectives": names,
        "labels": [metric_label(name) for name in names],
        "rows": [
            {
                "method": e.method,
                "front": e.on_front,
                "values": [e.values.get(name) for name in names],
                "weights": [float(f"{w:.6g}") for w in e.weights],
            }
            for e in record.evaluations
        ],
        "planes": {key: list(axes) for key, axes in planes.items()},
        "first": places.get(record.chosen) or _first_of_front(record),
        "command": record.export,
    }


def places_of(record: RunRecord) -> dict[str, int]:
    """Method → the number of the evaluation with its weights, where there is one."""
    known: dict[tuple[float, ...], int] = {}
    for place, evaluation in enumerate(record.evaluations, 1):
        known.setdefault(_rounded(evaluation.weights), place)
    found = {
        method: known.get(_rounded(entry.get("weights") or ()))
        for method, entry in record.methods.items()
    }
    return {method: place for method, place in found.items() if place is not None}


def _rounded(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(w, PLACES) for w in weights)


def _first_of_front(record: RunRecord) -> int:
    return next((n for n, e in enumerate(record.evaluations, 1) if e.on_front), 1)
