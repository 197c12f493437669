"""The Pareto front: every evaluated w in the plane of the loss and one metric."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from fusetune.objective import Objective
from fusetune.report.content import (
    REFERENCES,
    EvaluationRow,
    RunRecord,
    objective_named,
    point,
)
from fusetune.report.palette import (
    BLUE,
    CHOSEN,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PINK,
    POINT,
    SKY,
    dressed,
    safe,
)
from fusetune.report.picks import places_of
from fusetune.report.wording import heaviest, metric_label, number

MARKS = {
    "finetune": ("square", GREEN),
    "swa": ("diamond", ORANGE),
    "greedy": ("pentagon", PINK),
}
LOOKED_AT = "looked at"
"""Name of the trace that rings the mixture that the reader points at."""
OTHER_MARKS = ("triangle-up", "triangle-down", "hexagon", "cross", "x", "bowtie", "hourglass")


def pareto(record: RunRecord, metric: str | None = None) -> go.Figure | None:
    """All evaluations in the plane of loss and one metric, with their Pareto front.

    Args:
        record: The run.
        metric: The metric on the upright axis; None takes the primary one.
    """
    pair = plane(record, metric)
    if pair is None:
        return None
    x, y = pair
    points = [(n, e) for n, e in enumerate(record.evaluations, 1) if _has(e, x, y)]
    if not points:
        return None
    single = [(n, e) for n, e in points if sum(w > 0 for w in e.weights) == 1]
    mixed = [(n, e) for n, e in points if sum(w > 0 for w in e.weights) > 1]
    front = _front([e for _, e in points], x, y)
    figure = go.Figure()
    figure.add_scatter(
        x=[e.values[x.name] for e in front],
        y=[e.values[y.name] for e in front],
        name="Pareto front",
        mode="lines+markers",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        marker={"color": BLUE, "size": 7},
        hoverinfo="skip",
    )
    groups = (
        ("evaluated mixtures", mixed, {"color": POINT, "size": 7, "opacity": 0.75}),
        ("single members", single, {"color": SKY, "size": 10, "symbol": "circle-open"}),
    )
    for name, rows, marker in groups:
        if rows:
            figure.add_scatter(
                x=[e.values[x.name] for _, e in rows],
                y=[e.values[y.name] for _, e in rows],
                name=name,
                mode="markers",
                marker={"line": {"width": 2 if name == "single members" else 0}, **marker},
                customdata=[n for n, _ in rows],
                hovertext=[_hover(n, e, record, x, y) for n, e in rows],
                hoverinfo="text",
            )
    _mark_methods(figure, record, x, y)
    figure.add_scatter(  # moved by the page's script to the mixture that is looked at
        x=[None],
        y=[None],
        name=LOOKED_AT,
        mode="markers",
        marker={"symbol": "circle-open", "size": 24, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(title_text=_axis_title(x))
    figure.update_yaxes(title_text=_axis_title(y))
    return dressed(figure, 520)


def plane(record: RunRecord, metric: str | None) -> tuple[Objective, Objective] | None:
    """The two objectives to draw: the loss (or the first other one) and the metric."""
    y = record.primary if metric is None else objective_named(metric, record.objectives)
    others = [o for o in record.objectives if o.name != y.name]
    return (others[0], y) if others else None


def _has(evaluation: EvaluationRow, *objectives: Objective) -> bool:
    values = [evaluation.values.get(o.name) for o in objectives]
    return all(v is not None and v == v for v in values)


def _front(points: Sequence[EvaluationRow], x: Objective, y: Objective) -> list[EvaluationRow]:
    """The points that no other one beats in this plane, from the best x to the best y."""
    ranked = sorted(
        points, key=lambda e: (-x.sign * e.values[x.name], -y.sign * e.values[y.name])
    )
    front: list[EvaluationRow] = []
    for candidate in ranked:
        if not front or y.better(candidate.values[y.name], front[-1].values[y.name]):
            front.append(candidate)
    return front


def _mark_methods(figure: go.Figure, record: RunRecord, x: Objective, y: Objective) -> None:
    """Where each method ended; the chosen one last, as a star on top."""
    others = iter(OTHER_MARKS * 4)
    places = places_of(record)
    for method in sorted(record.methods, key=lambda name: name == record.chosen):
        entry = record.methods[method]
        at = [point(entry, "validation", o.name).get("value") for o in (x, y)]
        if method in REFERENCES or any(v is None or v != v for v in at):
            continue
        symbol, color = MARKS.get(method) or (next(others), SKY)
        chosen = method == record.chosen
        if chosen:
            symbol, color = "star", CHOSEN
        lines = [f"<b>{safe(method)}</b>{', chosen' if chosen else ''}"]
        lines += [
            f"{metric_label(o.name)} {number(v)}" for o, v in zip((x, y), at, strict=True)
        ]
        if entry.get("weights"):
            lines += [safe(line) for line in heaviest(entry["weights"], record.member_names)]
        figure.add_scatter(
            x=[at[0]],
            y=[at[1]],
            name=f"{safe(method)} (chosen)" if chosen else safe(method),
            mode="markers",
            customdata=[places.get(method)],
            marker={
                "symbol": symbol,
                "size": 19 if chosen else 13,
                "color": color,
                "line": {"color": PAPER, "width": 1.5},
            },
            hovertext=["<br>".join(lines)],
            hoverinfo="text",
        )


def _hover(
    place: int, evaluation: EvaluationRow, record: RunRecord, x: Objective, y: Objective
) -> str:
    """What one point says: its number, its values, its non-zero weights."""
    head = f"<b>evaluation {place}</b>"
    if evaluation.method:
        head += f" · {safe(evaluation.method)}"
    lines = [head]
    lines += [f"{metric_label(o.name)} {number(evaluation.values[o.name])}" for o in (x, y)]
    if evaluation.on_front:
        lines.append("on the Pareto front")
    lines += [safe(line) for line in heaviest(evaluation.weights, record.member_names)]
    return "<br>".join(lines)


def _axis_title(objective: Objective) -> str:
    better = "higher" if objective.direction == "maximize" else "lower"
    return f"validation {safe(metric_label(objective.name))} ({better} is better)"
