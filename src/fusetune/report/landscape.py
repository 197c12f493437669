"""Loss and metrics over the plane through three members: data, figures and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fusetune.objective import Objective
from fusetune.report.content import objective_named
from fusetune.report.page import Page, Section, Table
from fusetune.report.palette import BLUE, CHOSEN, INK, ORANGE, PAPER, dressed, safe
from fusetune.report.panels import Panel
from fusetune.report.wording import metric_label, number

Kind = Literal["member", "swa", "chosen"]

STYLES: Mapping[Kind, tuple[str, str, int]] = {
    "member": ("circle", BLUE, 13),
    "swa": ("diamond", ORANGE, 14),
    "chosen": ("star", CHOSEN, 19),
}

SHOWN = 90
"""Per cent of the points, best first, over which the colours spread."""

WIDTH = 900  # pixels, about; with it the height follows from equal scales on both axes


@dataclass(frozen=True, slots=True)
class Mark:
    """A model that the figures mark.

    Attributes:
        name: Of the member or method.
        kind: What it is.
        x: Coordinate of its orthogonal projection into the plane.
        y: The other one.
        distance: From the plane, in the same units; 0 for the three members.
        values: Objective name → value of the model itself.
        projected: The same of its projection, whose colour stands there.
    """

    name: str
    kind: Kind
    x: float
    y: float
    distance: float
    values: Mapping[str, float]
    projected: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Landscape:
    """Values over a grid of the plane.

    Attributes:
        title: Of the run.
        split: Where the models were evaluated.
        primary: Name of the primary metric.
        objectives: Loss first, then the metrics.
        x: Coordinates of the columns, distances in parameter space from the first member.
        y: Of the rows.
        values: Objective name → one row of values per y, one value per x.
        marks: The three members, then what is projected.
        version: Of fusetune.
    """

    title: str
    split: str
    primary: str
    objectives: tuple[Objective, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    values: Mapping[str, Sequence[Sequence[float]]]
    marks: tuple[Mark, ...]
    version: str


def to_json(found: Landscape) -> dict[str, Any]:
    """Everything that the figures show; numbers that are not finite become null."""
    data: dict[str, Any] = _finite(asdict(found))
    data["fusetune"] = data.pop("version")
    data["objectives"] = {o.name: o.direction for o in found.objectives}
    return data


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def figure(found: Landscape, name: str) -> go.Figure:
    """One objective over the plane; brighter is better.

    The colours spread over the better 90 % of the points, so that a steep edge does not
    hide the middle.

    Args:
        found: The data.
        name: Of the objective.
    """
    objective = objective_named(name, found.objectives)
    values = np.asarray(found.values[name], dtype=np.float64)
    low, high = _range(values, objective)
    drawn = go.Figure()
    drawn.add_contour(
        x=list(found.x),
        y=list(found.y),
        z=values.tolist(),
        zmin=low,
        zmax=high,
        colorscale="Cividis",
        reversescale=objective.direction == "minimize",
        contours={"start": low, "end": high, "size": (high - low) / 14},
        line={"width": 0.5, "color": PAPER},
        colorbar={"title": {"text": safe(metric_label(name)), "side": "right"}},
        hovertemplate="x %{x:.3g}, y %{y:.3g}<br>"
        f"{safe(metric_label(name))} %{{z:.4f}}<extra></extra>",
        showlegend=False,
    )
    corners = [m for m in found.marks if m.kind == "member"]
    drawn.add_scatter(
        x=[m.x for m in (*corners, *corners[:1])],
        y=[m.y for m in (*corners, *corners[:1])],
        mode="lines",
        line={"color": PAPER, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    for mark in found.marks:
        _draw(drawn, mark, name)
    drawn.update_xaxes(title_text="distance in parameter space", constrain="domain")
    drawn.update_yaxes(
        title_text="distance, orthogonal", scaleanchor="x", scaleratio=1, constrain="domain"
    )
    made = dressed(drawn, _height(found), margin={"l": 64, "r": 20, "t": 48, "b": 56})
    return made.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def _draw(drawn: go.Figure, mark: Mark, name: str) -> None:
    symbol, color, size = STYLES[mark.kind]
    label = metric_label(name)
    lines = [f"<b>{safe(mark.name)}</b>", f"{safe(label)} {number(mark.values.get(name))}"]
    if mark.kind != "member":
        lines.append(f"its projection {number(mark.projected.get(name))}")
        lines.append(f"{number(mark.distance)} from the plane")
    drawn.add_scatter(
        x=[mark.x],
        y=[mark.y],
        name=safe(mark.name) + (" (projected)" if mark.kind != "member" else ""),
        mode="markers",
        marker={
            "symbol": symbol,
            "color": color,
            "size": size,
            "line": {"color": PAPER, "width": 1.5},
        },
        hovertext=["<br>".join(lines)],
        hoverinfo="text",
    )
    if mark.kind == "member":  # readable on dark and on bright parts of the plane
        drawn.add_annotation(
            x=mark.x,
            y=mark.y,
            yshift=18,
            text=safe(mark.name),
            showarrow=False,
            font={"color": INK, "size": 12},
            bgcolor=PAPER,
            borderpad=2,
        )


def _range(values: NDArray[np.float64], objective: Objective) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    if objective.direction == "minimize":
        low, high = known.min(), np.percentile(known, SHOWN)
    else:
        low, high = np.percentile(known, 100 - SHOWN), known.max()
    if high <= low:  # steps of a metric: almost all points have one value
        low, high = known.min(), known.max()
    return float(low), float(high) if high > low else float(low) + 1e-9


def _height(found: Landscape) -> int:
    shape = (found.y[-1] - found.y[0]) / (found.x[-1] - found.x[0])
    return int(min(max(110 + (WIDTH - 190) * shape, 360), 860))


def page(found: Landscape) -> Page:
    """The page: one figure per objective, the primary metric after the loss, and the marks."""
    names = sorted(
        found.values, key=lambda n: (n != found.objectives[0].name, n != found.primary)
    )
    count = len(found.x) * len(found.y)
    sections = [
        Section(
            key=f"plane-{i}",
            title=metric_label(name)[0].upper() + metric_label(name)[1:],
            text=_extremes(found, name) if i else "",
            panels=(Panel(f"landscape-{i}", figure(found, name), _words(found, name)),),
        )
        for i, name in enumerate(names)
    ]
    sections.append(Section("models", "The models", _ABOUT_MARKS, table=_table(found)))
    return Page(
        kind="fusetune landscape",
        title=found.title,
        facts=(
            " · ".join(m.name for m in found.marks if m.kind == "member"),
            f"{len(found.x)} × {len(found.y)} points",
            found.split,
        ),
        headline=(
            f"The plane through three members, with {count} models of it evaluated on all of "
            f"{found.split}."
        ),
        details=(
            _extremes(found, names[0]),
            "Both axes are distances between weights, in an orthonormal basis of the plane; "
            "the first member is at the origin. Points outside the triangle are combinations "
            f"with a negative coefficient. Brighter is better; the colours spread over the "
            f"better {SHOWN} % of the points.",
        ),
        sections=tuple(sections),
        version=found.version,
    )


_ABOUT_MARKS = (
    "The average of all members (swa) and the chosen model lie outside of the plane: they are "
    "marked where their orthogonal projections stand. The colour there is that of the "
    "projection, not of the model; the table has both."
)


def _extremes(found: Landscape, name: str) -> str:
    """Where the best point of the grid is, compared with the three members."""
    objective = objective_named(name, found.objectives)
    values = np.asarray(found.values[name], dtype=np.float64)
    signed = np.where(np.isfinite(values), objective.sign * values, -np.inf)
    row, column = np.unravel_index(int(signed.argmax()), signed.shape)
    best = float(values[row, column])
    members = [m.values[name] for m in found.marks if m.kind == "member"]
    top = max(members, key=lambda v: objective.sign * v)
    label = metric_label(name)
    word = "Lowest" if objective.direction == "minimize" else "Highest"
    return (
        f"{word} {label} of the grid: {number(best)} at ({found.x[column]:.3g}, "
        f"{found.y[row]:.3g}); the best of the three members has {number(top)}."
    )


def _words(found: Landscape, name: str) -> str:
    marks = ", ".join(f"{m.name} {number(m.values.get(name))}" for m in found.marks)
    return (
        f"Contours of {metric_label(name)} on {found.split} over the plane through three "
        f"members. {marks}."
    )


def _table(found: Landscape) -> Table:
    names = [o.name for o in found.objectives]
    head = ["model", "x", "y", "from the plane"]
    head += [metric_label(n) for n in names]
    head += [f"{metric_label(n)} of the projection" for n in names]
    rows = [
        (
            mark.name,
            number(mark.x),
            number(mark.y),
            number(mark.distance),
            *(number(mark.values.get(n)) for n in names),
            *(number(mark.projected.get(n)) for n in names),
        )
        for mark in found.marks
    ]
    return Table("The marked models", tuple(head), tuple(rows))
