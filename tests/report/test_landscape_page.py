from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fusetune.objective import LOSS, Objective
from fusetune.report.landscape import Landscape, Mark, figure, page, to_json
from fusetune.report.page import render

X = (-1.0, 0.0, 1.0, 2.0, 3.0)
Y = (-0.5, 0.0, 0.5, 1.0)


def mark(name: str, kind: Any, x: float, y: float, distance: float = 0.0) -> Mark:
    values = {"loss": 0.4 + distance, "accuracy": 0.8}
    return Mark(name, kind, x, y, distance, values, {"loss": 0.4, "accuracy": 0.81})


@pytest.fixture
def found() -> Landscape:
    """A bowl of loss with its lowest point at (1, 0.5), and a plateau of accuracy."""
    loss = [[0.3 + (x - 1) ** 2 + (y - 0.5) ** 2 for x in X] for y in Y]
    accuracy = [[0.9 if v < 0.6 else 0.5 for v in row] for row in loss]
    return Landscape(
        title="rte: run <1>",
        split="validation",
        primary="accuracy",
        objectives=(LOSS, Objective("accuracy", "maximize")),
        x=X,
        y=Y,
        values={"loss": loss, "accuracy": accuracy},
        marks=(
            mark("step-1", "member", 0.0, 0.0),
            mark("step-2", "member", 2.0, 0.0),
            mark("step-3", "member", 1.0, 1.0),
            mark("swa", "swa", 1.0, 0.4, 0.1),
            mark("mobo, chosen", "chosen", 0.9, 0.5, 0.2),
        ),
        version="0.1.0",
    )


def test_the_contours_are_the_values(found: Landscape) -> None:
    contour = figure(found, "loss").data[0]
    assert np.shape(contour.z) == (4, 5)
    np.testing.assert_allclose(contour.z, found.values["loss"])
    assert (tuple(contour.x), tuple(contour.y)) == (X, Y)
    assert contour.zmin == pytest.approx(0.3)
    assert contour.zmax < 5.3  # the steep corner does not spread the colours
    assert contour.reversescale  # a low loss is bright
    assert not figure(found, "accuracy").data[0].reversescale


def test_every_model_is_marked_at_its_place(found: Landscape) -> None:
    drawn = {t.name: (t.x[0], t.y[0]) for t in figure(found, "loss").data if t.name}
    assert drawn == {
        "step-1": (0.0, 0.0),
        "step-2": (2.0, 0.0),
        "step-3": (1.0, 1.0),
        "swa (projected)": (1.0, 0.4),
        "mobo, chosen (projected)": (0.9, 0.5),
    }


def test_both_axes_have_one_scale(found: Landscape) -> None:
    assert figure(found, "loss").layout.yaxis.scaleanchor == "x"


def test_the_page_says_what_is_projected_and_loads_nothing(found: Landscape) -> None:
    text = render(page(found))
    assert "rte: run &lt;1&gt;" in text
    assert "orthogonal projections" in text
    assert "Lowest loss of the grid: 0.3000 at (1, 0.5)" in text
    assert "Highest accuracy of the grid: 0.9000" in text
    assert 'src="' not in text.split("<script")[0]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert set(data["plots"]) == {"landscape-0", "landscape-1"}
    assert data["dark"]


def test_the_data_are_json_also_where_a_model_broke_down(found: Landscape) -> None:
    found.values["loss"][0][0] = math.nan  # type: ignore[index]
    data = to_json(found)
    assert data["values"]["loss"][0][0] is None
    assert data["values"]["loss"][1] == found.values["loss"][1]
    assert data["objectives"] == {"loss": "minimize", "accuracy": "maximize"}
    assert data["marks"][4]["distance"] == 0.2
    json.dumps(data, allow_nan=False)
    assert "Lowest loss of the grid: 0.3000" in render(page(found))


def test_a_metric_with_one_value_everywhere(found: Landscape) -> None:
    found.values["accuracy"][:] = [[0.5] * 5] * 4  # type: ignore[index]
    contour = figure(found, "accuracy").data[0]
    assert contour.zmin < contour.zmax
