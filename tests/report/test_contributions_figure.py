from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusetune.report.content import RunRecord
from fusetune.report.contributions import contributions, words
from fusetune.report.html import render

Record = Callable[..., RunRecord]
Results = Callable[..., dict[str, Any]]

ENTRIES = [
    {
        "member": "step-001265",
        "weight": 0.6,
        "without": {"loss": 0.401, "f1": 0.8841, "accuracy": 0.85},
        "dispensable": False,
    },
    {
        "member": "step-001380",
        "weight": 0.4,
        "without": {"loss": 0.351, "f1": 0.8961, "accuracy": 0.86},
        "dispensable": True,
    },
]


@pytest.fixture
def run(record: Record, results: Results) -> RunRecord:
    return record(results=results(contributions=ENTRIES))


def test_a_bar_is_the_full_model_minus_the_one_without(run: RunRecord) -> None:
    """mobo has F1 0.8941 and loss 0.361: the first member helps, the second harms."""
    figure = contributions(run)
    assert figure is not None
    f1, loss = figure.data
    assert list(f1.x) == ["1265", "1380"]
    assert list(f1.y) == pytest.approx([0.01, -0.002])
    assert list(loss.y) == pytest.approx([0.04, -0.01])  # a lower loss points up
    assert f1.marker.color[0] != f1.marker.color[1]


def test_the_page_has_figure_and_table(run: RunRecord) -> None:
    page = render(run)
    assert 'id="contributions"' in page
    assert "+0.0100" in page
    assert "−0.0020" in page
    assert page.count("not needed</span>") == 1
    assert "step-001265 +0.0100" in words(run)


def test_without_contributions_there_is_no_section(record: Record) -> None:
    assert contributions(record()) is None
    assert "What each member adds" not in render(record())
