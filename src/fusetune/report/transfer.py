"""Whether cheap training finds the λ of the full one: figures and page."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from fusetune.objective import Objective
from fusetune.report.agreement import Agreement, Trained, agreement
from fusetune.report.page import Page, Section, Table
from fusetune.report.palette import BLUE, CHOSEN, INK, MUTED, PAPER, dressed, safe
from fusetune.report.panels import Panel
from fusetune.report.wording import metric_label, number, setting, signed


def scatter(
    found: Agreement, rows: Sequence[Trained], labels: tuple[str, str]
) -> go.Figure | None:
    """Every λ by two values, numbered; None with fewer than two.

    Args:
        found: What is drawn.
        rows: For the hyper-parameters in the hover text.
        labels: Of the two axes.
    """
    if len(found.pairs) < 2:
        return None
    by_number = {row.number: row for row in rows}
    figure = go.Figure()
    figure.add_scatter(
        x=[a for _, a, _ in found.pairs],
        y=[b for _, _, b in found.pairs],
        mode="markers+text",
        text=[str(number_) for number_, _, _ in found.pairs],
        textposition="top center",
        textfont={"color": INK, "size": 11},
        cliponaxis=False,
        marker={
            "color": [CHOSEN if p[0] == found.picked else BLUE for p in found.pairs],
            "size": [13 if p[0] == found.picked else 10 for p in found.pairs],
            "line": {"color": PAPER, "width": 1},
        },
        hovertext=[_hover(by_number[p[0]], p, labels) for p in found.pairs],
        hoverinfo="text",
    )
    figure.update_xaxes(title_text=safe(labels[0]))
    figure.update_yaxes(title_text=safe(labels[1]))
    correlation = found.correlation
    if correlation.spearman is not None:
        figure.add_annotation(
            text=f"Spearman {correlation.spearman:.2f}, Kendall {correlation.kendall:.2f}, "
            f"n = {correlation.n}",
            xref="paper",
            yref="paper",
            x=0,
            y=1.0,
            yanchor="bottom",
            showarrow=False,
            font={"color": MUTED, "size": 13},
        )
    return dressed(figure, 420, showlegend=False, margin={"l": 64, "r": 20, "t": 36, "b": 56})


def _hover(row: Trained, pair: tuple[int, float, float], labels: tuple[str, str]) -> str:
    lines = [f"<b>λ {row.number}</b>"]
    lines += [f"{safe(label)} {number(v)}" for label, v in zip(labels, pair[1:], strict=True)]
    lines += [f"{safe(n)} {safe(setting(v))}" for n, v in row.params.items()]
    return "<br>".join(lines)


def page(
    title: str,
    rows: Sequence[Trained],
    objective: Objective,
    headline: str,
    *,
    facts: Sequence[str],
    version: str,
) -> Page:
    """The page of both comparisons.

    Args:
        title: Name of the task.
        rows: One per λ.
        objective: The primary metric.
        headline: What `sentence` says of light against full.
        facts: What was trained, in a few words each.
        version: Of fusetune.
    """
    label = metric_label(objective.name)
    light = agreement(rows, "light", "full", objective)
    fused = agreement(rows, "best_member", "fused", objective)
    return Page(
        kind="fusetune transfer",
        title=title,
        facts=tuple(facts),
        headline=headline,
        details=(_fused_sentence(fused, label),),
        sections=(
            Section(
                "light",
                "Light variant and full model",
                f"Each λ by the best validation {label} while each variant trained. The one "
                "that the light variant would pick is marked.",
                _panel("light", light, rows, (f"light: {label}", f"full: {label}")),
            ),
            Section(
                "fused",
                "Best member and fused model",
                f"Each full trajectory by the validation {label} of its best member and of "
                "the fusion of its members.",
                _panel("fused", fused, rows, (f"best member: {label}", f"fused: {label}")),
            ),
            Section("numbers", "All λ", table=_table(rows)),
        ),
        version=version,
    )


def _panel(
    key: str, found: Agreement, rows: Sequence[Trained], labels: tuple[str, str]
) -> tuple[Panel, ...]:
    figure = scatter(found, rows, labels)
    if figure is None:
        return ()
    pairs = "; ".join(f"{i}: {number(a)}, {number(b)}" for i, a, b in found.pairs)
    return (Panel(f"transfer-{key}", figure, f"{labels[0]} against {labels[1]}: {pairs}."),)


def _fused_sentence(found: Agreement, label: str) -> str:
    rho, n = found.correlation.spearman, found.correlation.n
    if rho is None:
        return f"Best member and fused model: no order to compare over {n} trajectories."
    gain = [b - a for _, a, b in found.pairs]
    return (
        f"Best member and fused model of {n} full trajectories: rank correlation {rho:.2f} "
        f"(Spearman; Kendall {found.correlation.kendall:.2f}); fusing changes the {label} by "
        f"{signed(sum(gain) / n)} in the mean."
    )


def _table(rows: Sequence[Trained]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    failed = ("failed",) if any(row.reason for row in rows) else ()
    head = ("λ", *names, "light", "full", "best member", "fused", *failed)
    body = tuple(
        (
            str(row.number),
            *(setting(row.params.get(name, "")) for name in names),
            *(number(v) for v in (row.light, row.full, row.best_member, row.fused)),
            *(row.reason[:120] for _ in failed),
        )
        for row in rows
    )
    return Table("All hyper-parameters tried", head, body)
