"""What the record of a run says of its adapters' average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusetune.members.adapter_average import AdapterAverage
from fusetune.members.adapter_export import apart_distance
from fusetune.members.points import Point


def describe(
    average: AdapterAverage, point: Point, exported: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """For results.json, and as sentences for the report.

    Args:
        average: Of the run's members.
        point: What was chosen.
        exported: What `write_adapter` said; empty if the model was merged.
    """
    distance = apart_distance(average, point)
    found = {
        "averaged": "factors" if average.apart else "exact",
        "distance_of_factors": distance,
        **({"export": dict(exported)} if exported else {}),
    }
    notes = []
    quantised = average.source.base.quantisation
    if quantised:
        found["quantization"] = quantised
        notes.append(
            f"The base model is quantised ({quantised}). {_written(quantised, exported)}"
        )
    if distance is not None and average.apart:
        notes.append(
            f"A and B were averaged apart; that is {distance:.2%} of the change of the weights "
            "away from the exact average of the adapters."
        )
    elif distance is not None:
        notes.append(
            "The adapters were averaged exactly; averaging A and B apart would lie "
            f"{distance:.2%} of the change of the weights away."
        )
    if "relative_error" in exported:
        notes.append(
            f"The adapter in fused/ was cut to rank {exported['rank']}: it misses "
            f"{exported['relative_error']:.2%} of the change of the weights (Frobenius norm)."
        )
    return found, notes


def _written(quantised: str, exported: Mapping[str, Any]) -> str:
    if exported:
        return "The adapter in fused/ belongs on the base quantised in the same way."
    if "8bit" not in quantised:
        return "fused/ holds the plain weights that it stands for: what was evaluated."
    return (
        "fused/ holds the plain weights that it stands for; the layers that were evaluated "
        "round their inputs to 8 bits as well."
    )
