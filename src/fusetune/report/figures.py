"""Figures of the fusion: intervals by method, progress over evaluations, weights by member
and by group of layers.

Every function takes a `RunRecord` and returns a Plotly figure, or None where the record has
nothing to draw. Figures have a height and no width: they fill the page, and
`figure.write_image("weights.svg", width=900)` makes a picture of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fusetune.report.content import RunRecord, best_so_far, point
from fusetune.report.palette import BLUE, CHOSEN, INK, PAPER, POINT, dressed, safe
from fusetune.report.wording import interval, metric_label, number

SPLITS = ("validation", "test")


def intervals(record: RunRecord, metric: str | None = None) -> go.Figure | None:
    """Every method's value on validation and test with its 95 % bootstrap interval.

    Args:
        record: The run.
        metric: Which metric; None takes the primary one.
    """
    name = metric or record.primary.name
    order = list(reversed(list(record.methods)))
    figure = go.Figure()
    for split in SPLITS:
        _split_intervals(figure, record, name, split, order)
    if not figure.data:
        return None
    ticks = [f"{safe(m)} (chosen)" if m == record.chosen else safe(m) for m in order]
    figure.update_xaxes(title_text=safe(metric_label(name)))
    figure.update_yaxes(
        tickvals=list(range(len(order))), ticktext=ticks, range=[-0.6, len(order) - 0.4]
    )
    return dressed(figure, 130 + 52 * len(order))


def _split_intervals(
    figure: go.Figure, record: RunRecord, metric: str, split: str, order: Sequence[str]
) -> None:
    """One split: a whisker and a dot per method, test filled and below validation."""
    test = split == "test"
    found = [(i, m, point(record.methods[m], split, metric)) for i, m in enumerate(order)]
    drawn = [
        (i - 0.14 if test else i + 0.14, m, p)
        for i, m, p in found
        if p.get("value") is not None
    ]
    for y, method, p in drawn:
        figure.add_scatter(
            x=[p.get("low"), p.get("high")],
            y=[y, y],
            mode="lines",
            line={"color": _color(record, method), "width": 2 if test else 1},
            showlegend=False,
            hoverinfo="skip",
        )
    if not drawn:
        return
    figure.add_scatter(
        x=[p.get("value") for _, _, p in drawn],
        y=[y for y, _, _ in drawn],
        name=split,
        mode="markers",
        marker={
            "color": [_color(record, m) for _, m, _ in drawn],
            "size": 10,
            "symbol": "circle" if test else "circle-open",
            "line": {"width": 2},
        },
        hovertext=[
            f"<b>{safe(m)}</b> · {split}<br>{safe(metric_label(metric))} "
            f"{number(p.get('value'))} {interval(p.get('low'), p.get('high'))}"
            for _, m, p in drawn
        ],
        hoverinfo="text",
    )


def _color(record: RunRecord, method: str) -> str:
    return CHOSEN if method == record.chosen else BLUE


def progress(record: RunRecord) -> go.Figure | None:
    """Hypervolume, and the best primary value so far, after each evaluation."""
    primary = record.primary
    values = [e.values.get(primary.name) for e in record.evaluations]
    if len(values) < 2:
        return None
    best = best_so_far(values, primary)
    lines: dict[str, Sequence[float | None]] = {
        **({"hypervolume": record.hypervolume} if record.hypervolume else {}),
        f"best {safe(metric_label(primary.name))} so far": best,
    }
    count = list(range(1, len(values) + 1))
    figure = make_subplots(rows=len(lines), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    figure.add_scatter(
        x=count,
        y=values,
        mode="markers",
        marker={"color": POINT, "size": 6},
        hovertemplate="evaluation %{x}: %{y:.4f}<extra></extra>",
        row=len(lines),
        col=1,
    )
    for row, (title, line) in enumerate(lines.items(), 1):
        figure.add_scatter(
            x=count,
            y=line,
            mode="lines",
            line={"color": BLUE, "width": 2.5, "shape": "hv"},
            hovertemplate="after %{x} evaluations: %{y:.4f}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text="evaluations", row=len(lines), col=1)
    return dressed(figure, 60 + 210 * len(lines), showlegend=False)


def weights(record: RunRecord) -> go.Figure | None:
    """How each method weighs the members: one row of bars per method."""
    rows = {m: e["weights"] for m, e in record.methods.items() if e.get("weights")}
    if not rows or len(record.members) < 2:
        return None
    labels = [safe(label) for label in record.member_labels]
    titles = [f"{safe(m)} (chosen)" if m == record.chosen else safe(m) for m in rows]
    height = 80 + 104 * len(rows)
    figure = make_subplots(
        rows=len(rows),
        cols=1,
        shared_xaxes=True,
        subplot_titles=titles,
        vertical_spacing=44 / height,
    )
    crowded = len(labels) > 24
    for row, (method, values) in enumerate(rows.items(), 1):
        figure.add_bar(
            x=labels,
            y=list(values),
            marker={"color": CHOSEN if method == record.chosen else BLUE},
            text=["" if crowded or v < 0.005 else f"{v:.2f}" for v in values],
            textposition="outside",
            textfont={"color": INK, "size": 11},
            cliponaxis=False,
            customdata=[safe(name) for name in record.member_names],
            hovertemplate="%{customdata}: %{y:.4f}<extra></extra>",
            row=row,
            col=1,
        )
        top = max(values) * 1.35  # room for the numbers over the bars
        figure.update_yaxes(range=[0, top], nticks=3, row=row, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK}, yshift=8)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(
        title_text="member (training step)" if record.by_step else "member",
        row=len(rows),
        col=1,
    )
    return dressed(
        figure,
        height,
        showlegend=False,
        bargap=0.25,
        margin={"l": 64, "r": 20, "t": 40, "b": 56},
    )


def layers(record: RunRecord) -> go.Figure | None:
    """Group of layers × member for each method with a w per group: the weight as colour."""
    rows = {m: e["layers"] for m, e in record.methods.items() if e.get("layers")}
    if not rows or len(record.members) < 2:
        return None
    labels = [safe(label) for label in record.member_labels]
    titles = [f"{safe(m)} (chosen)" if m == record.chosen else safe(m) for m in rows]
    height = 90 + sum(40 + 26 * len(groups) for groups in rows.values())
    figure = make_subplots(
        rows=len(rows),
        cols=1,
        shared_xaxes=True,
        subplot_titles=titles,
        vertical_spacing=44 / height,
    )
    top = max(w for groups in rows.values() for group in groups for w in group["weights"])
    for row, groups in enumerate(rows.values(), 1):
        figure.add_heatmap(
            x=labels,
            y=[safe(group["group"]) for group in groups],
            z=[list(group["weights"]) for group in groups],
            zmin=0.0,
            zmax=top,
            colorscale=[[0.0, PAPER], [1.0, BLUE]],
            showscale=False,
            xgap=1,
            ygap=1,
            texttemplate="" if len(labels) > 24 else "%{z:.2f}",
            textfont={"size": 11},
            hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK}, yshift=8)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(
        title_text="member (training step)" if record.by_step else "member",
        row=len(rows),
        col=1,
    )
    margin = {"l": 64, "r": 20, "t": 40, "b": 56}
    return dressed(figure, height, showlegend=False, margin=margin)
