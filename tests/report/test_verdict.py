from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusetune.objective import LOSS, Objective
from fusetune.report.verdict import verdict

F1 = Objective("f1", "maximize")
Results = Callable[..., dict[str, Any]]


def compared(difference: float, low: float, high: float) -> dict[str, Any]:
    return {"finetune": {"difference": difference, "low": low, "high": high, "p_value": 0.1}}


@pytest.mark.parametrize(
    ("difference", "low", "high", "kind", "opening"),
    [
        (0.0148, 0.0021, 0.0279, "gain", "A clear gain"),
        (0.0148, -0.0021, 0.0279, "noise", "Inside the noise"),
        (-0.0010, -0.0100, 0.0080, "none", "No gain"),
        (-0.0148, -0.0279, -0.0021, "worse", "Worse than before"),
    ],
)
def test_the_interval_decides(
    results: Results, difference: float, low: float, high: float, kind: str, opening: str
) -> None:
    found = verdict(results(comparison=compared(difference, low, high)), (LOSS, F1))
    assert found.kind == kind
    assert found.headline.startswith(opening)
    assert "F1 0.8803" in found.headline
    assert f"{abs(difference):.4f}" in found.headline


def test_the_interval_is_named_when_it_includes_nothing(results: Results) -> None:
    found = verdict(results(comparison=compared(0.0148, -0.0021, 0.0279)), (LOSS, F1))
    assert "−0.0021" in found.headline
    assert "+0.0279" in found.headline


def test_without_intervals_nothing_is_claimed(results: Results) -> None:
    found = verdict(results(comparison={}), (LOSS, F1))
    assert found.kind == "open"
    assert any("how much of it is noise is not known" in text for text in found.details)


def test_a_single_checkpoint_that_won(results: Results) -> None:
    found = verdict(results(chosen="finetune", comparison={}), (LOSS, F1))
    assert found.kind == "none"
    assert "no fusion beat the best single checkpoint" in found.headline


def test_a_metric_to_be_minimised_gains_by_falling(results: Results) -> None:
    content = results(primary="loss", comparison=compared(-0.091, -0.120, -0.060))
    assert verdict(content, (LOSS, F1)).kind == "gain"


def test_the_oracle_is_no_rival(results: Results) -> None:
    content = results()
    content["methods"]["oracle"] = content["methods"]["greedy"]
    text = " ".join(
        [verdict(content, (LOSS, F1)).headline, *verdict(content, (LOSS, F1)).details]
    )
    assert "oracle" not in text
