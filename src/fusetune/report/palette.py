"""Colours and the common dress of every figure.

The hues are those of Okabe and Ito (Color Universal Design, 2008), which stay apart for
readers with any form of colour blindness. Figures are drawn in the light colours; `DARK`
says what the page puts in their place where the reader's screen is dark.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

INK = "#1f2328"
MUTED = "#656d76"
GRID = "#e4e7eb"
POINT = "#a2a9b2"
PAPER = "#ffffff"
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
ORANGE = "#e69f00"
PINK = "#cc79a7"
SKY = "#56b4e9"

DARK: Mapping[str, str] = {
    INK: "#e6e9ed",
    MUTED: "#9aa4af",
    GRID: "#2b3138",
    POINT: "#717a85",
    PAPER: "#14171b",
    BLUE: "#4ba3dd",
    VERMILION: "#f5813f",
    GREEN: "#34c29a",
    ORANGE: "#f0b73d",
    PINK: "#e39cc3",
    SKY: "#7cc8f4",
}

CHOSEN = VERMILION
"""The chosen method, in every figure."""

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', Arial, sans-serif"
)

PLAIN = go.layout.Template(
    layout={"xaxis": {"exponentformat": "e"}, "yaxis": {"exponentformat": "e"}}
)
"""No theme, and ticks such as 4e-5, where Plotly would write 40µ."""


def safe(text: object) -> str:
    """A name for a figure, where Plotly reads text as a small subset of HTML."""
    return html.escape(str(text), quote=False)


def dressed(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The figure with the page's fonts, axes and margins, on a transparent ground.

    Args:
        figure: Changed in place and returned.
        height: Pixels; the width is that of the page.
        layout: Further layout settings, which win.
    """
    figure.update_layout(
        template=PLAIN,
        height=height,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 64, "r": 20, "t": 16, "b": 56},
        hoverlabel={"bgcolor": PAPER, "bordercolor": GRID, "font": {"color": INK}},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"color": INK},
        },
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
    )
    axes: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "tickfont": {"color": MUTED},
        "title_font": {"color": INK},
        "title_standoff": 10,
        "zeroline": False,
        "automargin": True,
    }
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    figure.update_layout(**layout)
    return figure
