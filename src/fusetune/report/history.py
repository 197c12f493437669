"""Figures of what came before the fusion: trajectory, search over hyper-parameters, cost.

As in `figures`, every function takes a `RunRecord` and returns a figure or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fusetune.objective import LOSS, Objective
from fusetune.report.content import RunRecord, TrialRow, best_so_far, point
from fusetune.report.palette import BLUE, CHOSEN, INK, MUTED, PAPER, dressed, safe
from fusetune.report.wording import duration, metric_label, number, setting, size

FEWEST_FOR_SCATTER = 4


def trajectory(record: RunRecord) -> go.Figure | None:
    """Each member's own loss and metrics along the training, with the fused model's level."""
    shown = [
        objective
        for objective in sorted(record.objectives, key=lambda o: o.name != LOSS.name)
        if sum(objective.name in member.values for member in record.members) > 1
    ]
    if not shown:
        return None
    x = [m.step if record.by_step else safe(m.name) for m in record.members]
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, objective in enumerate(shown, 1):
        name = metric_label(objective.name)
        for line in _trajectories(record):
            figure.add_scatter(
                x=[x[i] for i in line],
                y=[record.members[i].values.get(objective.name) for i in line],
                name="members",
                mode="lines+markers",
                line={"color": BLUE, "width": 2},
                marker={"color": BLUE, "size": 7},
                hovertext=[_member_hover(record, i, name, objective) for i in line],
                hoverinfo="text",
                showlegend=row == 1 and line[0] == 0,
                row=row,
                col=1,
            )
        _fused_level(figure, record, objective, row, (x[0], x[-1]))
        figure.update_yaxes(title_text=safe(name), row=row, col=1)
    figure.update_xaxes(
        title_text="training step" if record.by_step else "member", row=len(shown), col=1
    )
    return dressed(figure, 90 + 200 * len(shown))


def _trajectories(record: RunRecord) -> list[list[int]]:
    """The members' indices by trajectory: each is a line of its own."""
    lines: dict[int | None, list[int]] = {}
    for i, member in enumerate(record.members):
        lines.setdefault(member.trajectory, []).append(i)
    return list(lines.values())


def _fused_level(
    figure: go.Figure, record: RunRecord, objective: Objective, row: int, ends: Sequence[object]
) -> None:
    """A dashed line at the fused model's validation value."""
    level = point(record.methods[record.chosen], "validation", objective.name).get("value")
    if not _known(level):
        return
    chosen = safe(record.chosen)
    figure.add_scatter(
        x=list(ends),
        y=[level, level],
        name=f"fused model ({chosen})",
        mode="lines",
        line={"color": CHOSEN, "width": 2, "dash": "dash"},
        hovertemplate=f"{chosen}: {number(level)}<extra></extra>",
        showlegend=row == 1,
        row=row,
        col=1,
    )


def _member_hover(record: RunRecord, index: int, name: str, objective: Objective) -> str:
    member = record.members[index]
    lines = [f"<b>{safe(member.name)}</b>"]
    if member.epoch is not None:
        lines.append(f"epoch {member.epoch:.2f}")
    lines.append(f"{safe(name)} {number(member.values.get(objective.name))}")
    return "<br>".join(lines)


def search(record: RunRecord) -> go.Figure | None:
    """The value of each trial of the search, the best so far, and what ended early."""
    objective = record.trial_objective or record.primary
    measured = [t.value for t in record.trials if _known(t.value)]
    if len(record.trials) < 2 or not measured:
        return None
    figure = go.Figure()
    done = [t for t in record.trials if t.state == "COMPLETE" and _known(t.value)]
    if done:
        best = best_so_far([t.value for t in done], objective)
        figure.add_scatter(
            x=[t.number for t in done] + [record.trials[-1].number],
            y=[*best, best[-1]],
            name="best so far",
            mode="lines",
            line={"color": CHOSEN, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    floor = _floor([float(v) for v in measured if v is not None], objective)
    for state, name, marker in (
        ("COMPLETE", "complete", {"color": BLUE, "symbol": "circle", "size": 10}),
        ("PRUNED", "stopped early", {"color": MUTED, "symbol": "triangle-down", "size": 10}),
        ("FAIL", "failed", {"color": INK, "symbol": "x", "size": 9}),
    ):
        trials = [t for t in record.trials if t.state == state]
        if trials:
            figure.add_scatter(
                x=[t.number for t in trials],
                y=[t.value if _known(t.value) else floor for t in trials],
                name=name,
                mode="markers",
                marker=marker,
                hovertext=[_trial_hover(t, objective) for t in trials],
                hoverinfo="text",
            )
    figure.update_xaxes(title_text="trial", dtick=1 if len(record.trials) <= 25 else None)
    figure.update_yaxes(title_text=safe(metric_label(objective.name)))
    return dressed(figure, 360)


def search_parameters(record: RunRecord) -> dict[str, go.Figure]:
    """The value of a trial against each hyper-parameter, one small figure per parameter.

    A star is the trial whose λ was taken, or the best one where that is not known. Empty when
    fewer than four trials have a value, or nothing varied.
    """
    objective = record.trial_objective or record.primary
    trials = [t for t in record.trials if t.state == "COMPLETE" and _known(t.value)]
    if len(trials) < FEWEST_FOR_SCATTER:
        return {}
    best = max(trials, key=lambda t: (t.chosen, objective.sign * float(t.value or 0.0)))
    figures = {}
    for name in dict.fromkeys(name for t in trials for name in t.params):
        rows = [t for t in trials if name in t.params]
        if len({str(t.params[name]) for t in rows}) > 1:
            figures[name] = _parameter(name, rows, best, objective)
    return figures


def _parameter(
    name: str, trials: Sequence[TrialRow], best: TrialRow, objective: Objective
) -> go.Figure:
    raw = [t.params[name] for t in trials]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in raw)
    choices = sorted(set(raw)) if numeric else sorted({str(v) for v in raw})
    categorical = not numeric or (len(choices) <= 6 and all(isinstance(v, int) for v in raw))
    figure = go.Figure()
    figure.add_scatter(
        x=[safe(v) for v in raw] if categorical else raw,
        y=[t.value for t in trials],
        mode="markers",
        marker={
            "color": [CHOSEN if t is best else BLUE for t in trials],
            "size": [13 if t is best else 9 for t in trials],
            "symbol": ["star" if t is best else "circle" for t in trials],
            "line": {"color": PAPER, "width": 1},
        },
        hovertext=[_trial_hover(t, objective) for t in trials],
        hoverinfo="text",
    )
    if categorical:
        figure.update_xaxes(
            type="category", categoryorder="array", categoryarray=[safe(v) for v in choices]
        )
    elif min(raw) > 0 and max(raw) / min(raw) >= 20:
        figure.update_xaxes(type="log", dtick="D2" if max(raw) / min(raw) < 1e3 else 1)
        figure.update_xaxes(exponentformat="power")
    else:
        # Of its own, Plotly writes 4e-5 beside 1e-4 as 0.4e-4.
        figure.update_xaxes(nticks=5, tickformat=".2~e" if 0 < max(raw) < 1e-3 else None)
    figure.update_xaxes(title_text=safe(name))
    figure.update_yaxes(title_text=safe(metric_label(objective.name)), nticks=5)
    return dressed(figure, 260, showlegend=False)


def _trial_hover(trial: TrialRow, objective: Objective) -> str:
    lines = [f"<b>trial {trial.number}</b> · {trial.state.lower()}"]
    if _known(trial.value):
        lines.append(f"{safe(metric_label(objective.name))} {number(trial.value)}")
    lines += [f"{safe(name)} {safe(setting(value))}" for name, value in trial.params.items()]
    if trial.seconds is not None:
        lines.append(duration(trial.seconds))
    if trial.reason:
        lines.append(safe(trial.reason[:120]))
    return "<br>".join(lines)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _floor(values: Sequence[float], objective: Objective) -> float:
    """Just beyond the worst value, where trials without a value are drawn."""
    span = (max(values) - min(values)) or abs(values[0]) or 1.0
    worst = min(values) if objective.direction == "maximize" else max(values)
    return worst - objective.sign * 0.12 * span


def cost(record: RunRecord) -> go.Figure | None:
    """Wall time by stage, longest first, with the bytes that it moved."""
    moved = {stage: c.get("bytes", 0.0) for stage, c in record.cost.items()}
    seconds = {stage: c["seconds"] for stage, c in record.cost.items()}
    spent = [(stage, s) for stage, s in seconds.items() if math.isfinite(s) and s > 0]
    if not spent:
        return None
    spent.sort(key=lambda pair: pair[1])
    figure = go.Figure()
    figure.add_bar(
        x=[s for _, s in spent],
        y=[safe(stage) for stage, _ in spent],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{duration(s)}{', ' + size(moved[n]) if moved[n] else ''}" for n, s in spent],
        textposition="outside",
        textfont={"color": INK},
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    figure.update_xaxes(showticklabels=False, showgrid=False, range=[0, spent[-1][1] * 1.22])
    figure.update_yaxes(showgrid=False, ticks="", type="category")
    return dressed(figure, 40 + 36 * len(spent), margin={"l": 16, "r": 8, "t": 8, "b": 16})
