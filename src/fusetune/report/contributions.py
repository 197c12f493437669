"""What each member adds to the chosen model: its value without that member.

The entries are those of results.json, `contributions`: one per member that carries weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fusetune.objective import LOSS, Objective
from fusetune.report.content import RunRecord, point
from fusetune.report.palette import BLUE, INK, MUTED, POINT, dressed, safe
from fusetune.report.wording import metric_label, number, signed


def entries(record: RunRecord) -> Sequence[Mapping[str, Any]]:
    """The members that carry weight, in order; empty if a single one has it all."""
    found: Sequence[Mapping[str, Any]] = record.results.get("contributions") or ()
    return found


def adds(
    record: RunRecord, entry: Mapping[str, Any], objective: Objective | None = None
) -> float | None:
    """What a member adds to an objective on validation, turned so that above 0 is better.

    Args:
        record: The run.
        entry: Of the member.
        objective: The primary metric if None.
    """
    objective = objective or record.primary
    full = point(record.methods[record.chosen], "validation", objective.name).get("value")
    without = entry["without"].get(objective.name)
    if full is None or without is None:
        return None
    return objective.sign * (full - float(without))


def with_gains(record: RunRecord) -> list[tuple[Mapping[str, Any], float | None]]:
    """Every entry with what its member adds to the primary metric."""
    return [(entry, adds(record, entry)) for entry in entries(record)]


def contributions(record: RunRecord) -> go.Figure | None:
    """A bar per member: the full model against the one without it, in metric and loss.

    The bars start at the full model and point up where the member helps; members that could
    be done without are grey. The loss tells members apart where a metric moves in steps.
    """
    shown = {o.name: o for o in (record.primary, *record.objectives) if _measured(record, o)}
    kept = [o for n, o in shown.items() if n in (record.primary.name, LOSS.name)]
    if not kept:
        return None
    figure = make_subplots(rows=len(kept), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    for row, objective in enumerate(kept, 1):
        _bars(figure, record, objective, row)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(
        title_text="member (training step)" if record.by_step else "member",
        row=len(kept),
        col=1,
    )
    made = dressed(figure, 90 + 200 * len(kept), showlegend=False, bargap=0.35)
    return made.update_yaxes(zeroline=True, zerolinecolor=MUTED)


def _measured(record: RunRecord, objective: Objective) -> bool:
    gains = [adds(record, entry, objective) for entry in entries(record)]
    return bool(gains) and all(g is not None and isfinite(g) for g in gains)


def _bars(figure: go.Figure, record: RunRecord, objective: Objective, row: int) -> None:
    rows = entries(record)
    gains = [adds(record, entry, objective) or 0.0 for entry in rows]
    labels = dict(zip(record.member_names, record.member_labels, strict=True))
    figure.add_bar(
        x=[safe(labels.get(e["member"], e["member"])) for e in rows],
        y=gains,
        marker={"color": [POINT if e["dispensable"] else BLUE for e in rows]},
        text=[signed(gain) for gain in gains] if len(rows) <= 16 else None,
        textposition="outside",
        textfont={"color": INK, "size": 11},
        cliponaxis=False,
        hovertext=[_hover(record, entry) for entry in rows],
        hoverinfo="text",
        row=row,
        col=1,
    )
    low, high = min(0.0, *gains), max(0.0, *gains)
    room = 0.2 * (high - low) or 0.01  # for the numbers beyond the bars
    label = safe(metric_label(objective.name))
    figure.update_yaxes(
        title_text=f"{label}, better by" if objective.sign > 0 else f"{label}, lower by",
        range=[low - room * (low < 0), high + room],
        row=row,
        col=1,
    )


def words(record: RunRecord) -> str:
    """The figure in words."""
    full = point(record.methods[record.chosen], "validation", record.primary.name)
    parts = [f"{entry['member']} {signed(gain)}" for entry, gain in with_gains(record)]
    return (
        f"What each member adds to the {metric_label(record.primary.name)} of "
        f"{record.chosen}, {number(full.get('value'))} on validation: {', '.join(parts)}."
    )


def _hover(record: RunRecord, entry: Mapping[str, Any]) -> str:
    lines = [f"<b>{safe(entry['member'])}</b>, weight {entry['weight']:.2f}"]
    for objective in record.objectives:
        without = number(entry["without"].get(objective.name))
        gain = signed(adds(record, entry, objective))
        label = safe(metric_label(objective.name))
        lines.append(f"{label} without it {without}; it adds {gain}")
    if entry["dispensable"]:
        lines.append("leaving it out loses nothing")
    return "<br>".join(lines)
