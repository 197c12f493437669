"""Which figures the page shows, each with a caption and an alternative in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

from fusetune.objective import Objective
from fusetune.report import contributions, figures, front, history
from fusetune.report.content import REFERENCES, RunRecord, best_so_far, point
from fusetune.report.wording import duration, heaviest, metric_label, number


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure on the page.

    Attributes:
        key: Its id on the page.
        figure: The Plotly figure.
        alternative: What it shows, in words, for readers who do not see it.
        caption: How to read it, below the figure.
        title: Names it among several of its kind; empty if it stands alone.
        metric: Name of the metric it is about, where there is one figure per metric.
    """

    key: str
    figure: go.Figure
    alternative: str
    caption: str = ""
    title: str = ""
    metric: str | None = None


def panels(record: RunRecord) -> dict[str, tuple[Panel, ...]]:
    """Section → its figures; a section without anything to draw has none."""
    return {
        "intervals": _intervals(record),
        "front": _fronts(record),
        "progress": _single("progress", figures.progress(record), _progress_words(record)),
        "weights": (
            *_single("weights", figures.weights(record), _weights_words(record)),
            *_single("layers", figures.layers(record), _layers_words(record)),
        ),
        "trajectory": _single(
            "trajectory", history.trajectory(record), _trajectory_words(record)
        ),
        "contributions": _single(
            "contributions", contributions.contributions(record), contributions.words(record)
        ),
        "search": _single("search", history.search(record), _search_words(record)),
        "parameters": _parameters(record),
        "cost": _single("cost", history.cost(record), _cost_words(record)),
    }


def _single(key: str, figure: go.Figure | None, words: str) -> tuple[Panel, ...]:
    return () if figure is None else (Panel(key, figure, words),)


def _intervals(record: RunRecord) -> tuple[Panel, ...]:
    figure = figures.intervals(record)
    if figure is None:
        return ()
    name = record.primary.name
    parts = []
    for method, entry in record.methods.items():
        found = point(entry, "test", name) or point(entry, "validation", name)
        parts.append(f"{method} {number(found.get('value'))}")
    words = f"{metric_label(name)} of each method with 95 % intervals: {', '.join(parts)}."
    return (Panel("intervals", figure, words),)


def _fronts(record: RunRecord) -> tuple[Panel, ...]:
    """One plane per metric, the primary one first."""
    found: list[Panel] = []
    for metric in record.metrics:
        figure = front.pareto(record, metric.name)
        if figure is not None:
            key = f"front-{len(found)}"
            title = metric_label(metric.name)
            words = _front_words(record, metric)
            found.append(Panel(key, figure, words, title=title, metric=metric.name))
    return tuple(found)


def _front_words(record: RunRecord, metric: Objective) -> str:
    label = metric_label(metric.name)
    ends = [
        f"{method} {number(point(entry, 'validation', metric.name).get('value'))}"
        for method, entry in record.methods.items()
        if method not in REFERENCES
    ]
    return (
        f"Scatter of {len(record.evaluations)} evaluated weightings by validation loss and "
        f"{label}, with their Pareto front. {label} where each method ended: {', '.join(ends)}."
    )


def _progress_words(record: RunRecord) -> str:
    values = [e.values.get(record.primary.name) for e in record.evaluations]
    best = best_so_far(values, record.primary)
    words = f"Best {metric_label(record.primary.name)} so far over {len(values)} evaluations"
    if best:
        words += f": {number(best[0])} at first, {number(best[-1])} at last"
    if record.hypervolume:
        first, last = record.hypervolume[0], record.hypervolume[-1]
        words += f". Hypervolume from {number(first)} to {number(last)}"
    return f"{words}."


def _weights_words(record: RunRecord) -> str:
    weights = record.methods[record.chosen].get("weights") or ()
    words = "Bars of the weight that each method gives to each member."
    if len(weights) == len(record.members):
        listed = "; ".join(heaviest(weights, record.member_names))
        words += f" {record.chosen}: {listed}."
    return words


def _layers_words(record: RunRecord) -> str:
    words = "Heat maps of the weight that each group of layers gives to each member."
    for method, entry in record.methods.items():
        for group in entry.get("layers") or ():
            listed = "; ".join(heaviest(group["weights"], record.member_names, most=3))
            words += f" {method}, {group['group']}: {listed}."
    return words


def _trajectory_words(record: RunRecord) -> str:
    parts = []
    for objective in record.objectives:
        values = [
            m.values[objective.name] for m in record.members if objective.name in m.values
        ]
        if values:
            fused = point(record.methods[record.chosen], "validation", objective.name)
            parts.append(
                f"{metric_label(objective.name)} from {number(values[0])} to "
                f"{number(values[-1])}, fused {number(fused.get('value'))}"
            )
    return f"Validation values of the members in order: {'; '.join(parts)}."


def _search_words(record: RunRecord) -> str:
    objective = record.trial_objective or record.primary
    done = [t for t in record.trials if t.state == "COMPLETE"]
    best = best_so_far([t.value for t in done], objective)
    label = metric_label(objective.name)
    words = f"{label} of {len(record.trials)} search trials, {len(done)} of them complete"
    if not best:
        return f"{words}."
    words = f"{words}; the best reached {number(best[-1])}"
    taken = next((t for t in done if t.chosen and t.value != best[-1]), None)
    if taken is None:
        return f"{words}."
    return (
        f"{words}. The λ of trial {taken.number} was taken: its {number(taken.value)} is "
        "within the noise of that, and its learning rate is the more usual one."
    )


def _parameters(record: RunRecord) -> tuple[Panel, ...]:
    label = metric_label((record.trial_objective or record.primary).name)
    drawn: Iterable[tuple[str, go.Figure]] = history.search_parameters(record).items()
    return tuple(
        Panel(f"parameter-{i}", figure, f"{label} of the complete trials against {name}.")
        for i, (name, figure) in enumerate(drawn)
    )


def _cost_words(record: RunRecord) -> str:
    spent = sorted(record.cost.items(), key=lambda pair: -pair[1]["seconds"])
    parts = ", ".join(f"{stage} {duration(cost['seconds'])}" for stage, cost in spent)
    return f"Wall time by stage: {parts}; beside it the bytes of members read or written."
