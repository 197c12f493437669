from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusetune.report.content import EvaluationRow, RunRecord
from fusetune.report.picks import picks, places_of

Record = Callable[..., RunRecord]
Results = Callable[..., dict[str, Any]]
PLANES = {"front-0": ("loss", "f1")}


def test_a_method_stands_where_its_weights_were_evaluated(record: Record) -> None:
    made = record()
    places = places_of(made)
    assert places["finetune"] == 12  # the twelfth member alone
    assert places["swa"] == 16  # after 15 members
    assert "mobo" not in places  # of the synthetic run, was never evaluated


def test_roundings_of_sums_do_not_hide_a_mixture(record: Record, results: Results) -> None:
    content = results()
    moved = [w + (1e-12 if i else -1e-12) for i, w in enumerate([1 / 15] * 15)]
    content["methods"]["swa"]["weights"] = moved
    assert places_of(record(results=content))["swa"] == 16


def test_the_chosen_mixture_comes_first(record: Record, results: Results) -> None:
    data = picks(record(results=results(chosen="swa")), PLANES)
    assert data is not None
    assert data["first"] == 16
    assert data["rows"][15]["weights"] == pytest.approx([1 / 15] * 15, rel=1e-5)


def test_without_evaluations_there_is_nothing_to_pick(record: Record) -> None:
    assert picks(record(evaluations=(), hypervolume=()), PLANES) is None
    assert picks(record(), {}) is None


def test_a_value_that_was_not_measured_is_null(record: Record) -> None:
    made = record()
    row = EvaluationRow(made.evaluations[0].weights, {"loss": 0.5}, "mobo", False)
    data = picks(record(evaluations=(row,), hypervolume=()), PLANES)
    assert data is not None
    assert data["rows"][0]["values"] == [0.5, None, None]
