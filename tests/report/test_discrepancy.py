from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusetune.objective import LOSS, Objective
from fusetune.report.content import EvaluationRow, RunRecord
from fusetune.report.discrepancy import discrepancy, sentence
from fusetune.report.html import render

F1 = Objective("f1", "maximize")
ERROR = Objective("error", "minimize")
Record = Callable[..., RunRecord]
Results = Callable[..., dict[str, Any]]


def rows(*values: dict[str, float]) -> list[EvaluationRow]:
    return [EvaluationRow((1.0,), v) for v in values]


def test_agreement_is_one_whatever_the_directions() -> None:
    found = discrepancy(
        rows(
            {"loss": 0.5, "f1": 0.6, "error": 0.4},
            {"loss": 0.4, "f1": 0.7, "error": 0.3},
            {"loss": 0.3, "f1": 0.9, "error": 0.1},
        ),
        (LOSS, F1, ERROR),
        "f1",
    )
    assert found["n"] == 3
    assert found["split"] == "validation"
    for name in ("f1", "error"):
        assert found["metrics"][name]["spearman"] == pytest.approx(1.0)
        assert found["metrics"][name]["kendall"] == pytest.approx(1.0)


def test_the_best_loss_is_not_the_best_metric() -> None:
    found = discrepancy(
        rows({"loss": 0.3, "f1": 0.6}, {"loss": 0.4, "f1": 0.7}, {"loss": 0.5, "f1": 0.9}),
        (LOSS, F1),
        "f1",
    )["metrics"]["f1"]
    assert found["spearman"] == pytest.approx(-1.0)
    assert (found["at_best_loss"], found["best"]) == (0.6, 0.9)


def test_of_equal_losses_the_better_metric_counts() -> None:
    found = discrepancy(
        rows({"loss": 0.3, "f1": 0.6}, {"loss": 0.3, "f1": 0.8}, {"loss": 0.5, "f1": 0.7}),
        (LOSS, F1),
        "f1",
    )
    assert found["metrics"]["f1"]["at_best_loss"] == 0.8


def test_nothing_to_compare() -> None:
    one = rows({"loss": 0.3, "f1": 0.6})
    assert discrepancy(one, (LOSS, F1), "f1") == {}
    assert discrepancy(one * 2, (LOSS,), "loss") == {}
    assert sentence({}) == ""
    constant = discrepancy(
        rows(*[{"loss": 0.1 * i, "f1": 0.5} for i in (1, 2)]), (LOSS, F1), "f1"
    )
    assert constant["metrics"]["f1"]["spearman"] is None
    assert "cannot be said" in sentence(constant)


def test_the_report_says_it(record: Record, results: Results) -> None:
    run = record()
    entry = discrepancy(run.evaluations, run.objectives, "f1")
    assert entry["n"] == 90
    assert set(entry["metrics"]) == {"f1", "accuracy"}
    text = sentence(entry)
    assert f"rank correlation of {entry['metrics']['f1']['spearman']:.2f}" in text
    assert "the 90 evaluated w" in text
    assert text in render(record(results=results(discrepancy=entry)))
    assert "evaluated w in the same order" not in render(run)
