from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from fusetune.report import figures, front, history
from fusetune.report.content import EvaluationRow, RunRecord
from fusetune.report.panels import panels

Record = Callable[..., RunRecord]

DRAW = {
    "pareto": front.pareto,
    "intervals": figures.intervals,
    "progress": figures.progress,
    "weights": figures.weights,
    "trajectory": history.trajectory,
    "search": history.search,
    "cost": history.cost,
}


@pytest.mark.parametrize("name", DRAW)
def test_is_a_valid_figure(name: str, record: Record) -> None:
    figure = DRAW[name](record())
    assert isinstance(figure, go.Figure)
    assert figure.to_plotly_json()["data"]


def numbers(figure: go.Figure, axis: str) -> list[float]:
    found: list[Any] = []
    for trace in figure.data:
        values = getattr(trace, axis)
        found += [] if values is None else list(values)
    return [float(v) for v in found if isinstance(v, int | float | np.floating)]


def test_every_evaluation_is_a_point_of_the_front_figure(record: Record) -> None:
    run = record()
    figure = front.pareto(run)
    assert figure is not None
    shown = set(zip(numbers(figure, "x"), numbers(figure, "y"), strict=False))
    for evaluation in run.evaluations:
        assert (evaluation.values["loss"], evaluation.values["f1"]) in shown


def test_weights_stand_on_hover(record: Record) -> None:
    figure = front.pareto(record())
    assert figure is not None
    assert "step-" in str(figure.to_plotly_json())


def test_the_front_line_is_not_dominated(record: Record) -> None:
    run = record()
    figure = front.pareto(run)
    assert figure is not None
    (line,) = (t for t in figure.data if t.name == "Pareto front")
    best = {(e.values["loss"], e.values["f1"]) for e in run.evaluations}
    for x, y in zip(line.x, line.y, strict=True):
        assert not any(a < x and b > y for a, b in best)


def test_one_bar_per_member_and_method(record: Record) -> None:
    figure = figures.weights(record())
    assert figure is not None
    assert [len(trace.x) for trace in figure.data] == [15] * 4
    assert all(sum(trace.y) == pytest.approx(1.0) for trace in figure.data)


def test_each_trajectory_is_a_line_of_its_own(record: Record) -> None:
    made = record()
    assert made.by_step
    several = tuple(
        dataclasses.replace(m, trajectory=1 + i % 2) for i, m in enumerate(made.members)
    )
    changed = record(members=several)
    assert not changed.by_step  # steps do not tell members of two trainings apart
    drawn = [
        len([trace for trace in figure.data if trace.name == "members"])
        for figure in (history.trajectory(made), history.trajectory(changed))
        if figure is not None
    ]
    assert drawn[1] == 2 * drawn[0]


def test_hypervolume_has_a_point_per_evaluation(record: Record) -> None:
    figure = figures.progress(record())
    assert figure is not None
    assert max(len(trace.x) for trace in figure.data) >= 90


def test_nothing_to_draw_gives_none(record: Record) -> None:
    bare = record(evaluations=(), hypervolume=(), trials=(), cost={})
    assert figures.progress(bare) is None
    assert history.search(bare) is None
    assert history.cost(bare) is None


def test_a_record_checks_its_lengths(record: Record) -> None:
    with pytest.raises(ValueError, match="has 2 weights for 15 members"):
        record(evaluations=(EvaluationRow((0.5, 0.5), {}),), hypervolume=())
    with pytest.raises(ValueError, match="got 3 values for 90 evaluations"):
        record(hypervolume=(1.0, 2.0, 3.0))


def test_weights_by_layer_are_a_heat_map(
    record: Record, results: Callable[..., dict[str, Any]]
) -> None:
    assert figures.layers(record()) is None
    found = results()
    k = found["members"]
    groups = [
        {"group": name, "weights": [1.0 if i == row else 0.0 for i in range(k)]}
        for row, name in enumerate(("embeddings", "layers 1/1", "head"))
    ]
    first = next(iter(found["methods"].values()))
    found["methods"]["layers"] = {**first, "weights": None, "layers": groups}
    full = record(results=found)
    figure = figures.layers(full)
    assert figure is not None
    (heat,) = figure.data
    assert list(heat.y) == ["embeddings", "layers 1/1", "head"]
    assert [list(row) for row in heat.z] == [group["weights"] for group in groups]
    keys = [panel.key for panel in panels(full)["weights"]]
    assert keys == ["weights", "layers"]
    assert "layers, head: " in panels(full)["weights"][1].alternative


def test_small_numbers_on_an_axis_have_exponents(record: Record) -> None:
    """Not Plotly's 40µ: learning rates are written as 4e-5."""
    full = record()
    close = tuple(
        dataclasses.replace(t, params={"learning_rate": 1e-5 * (2 + t.number)})
        for t in full.trials
    )
    drawn = history.search_parameters(record(trials=close))["learning_rate"]
    formats = drawn.layout.template.layout
    assert (formats.xaxis.exponentformat, formats.yaxis.exponentformat) == ("e", "e")
    assert drawn.layout.xaxis.tickformat == ".2~e"


def test_the_trial_whose_values_were_taken_has_the_star(record: Record) -> None:
    """It need not be the best one: `search.choose: cautious`."""
    full = record()

    def starred(shown: RunRecord) -> list[float]:
        trace = history.search_parameters(shown)["learning_rate"].data[0]
        return [
            x
            for x, symbol in zip(trace.x, trace.marker.symbol, strict=True)
            if symbol == "star"
        ]

    done = [t for t in full.trials if t.state == "COMPLETE"]
    best = max(done, key=lambda t: t.value or 0.0)
    assert starred(full) == [best.params["learning_rate"]]
    assert "was taken" not in panels(full)["search"][0].alternative
    other = next(t for t in done if t is not best)
    trials = tuple(dataclasses.replace(t, chosen=t is other) for t in full.trials)
    full = record(trials=trials)
    assert starred(full) == [other.params["learning_rate"]]
    assert f"The λ of trial {other.number} was taken" in panels(full)["search"][0].alternative
