from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from fusetune.report.comparison import (
    Comparison,
    compare,
    to_json,
    to_latex,
    to_markdown,
    to_table,
)


def results(seed: int, **test: float) -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        split = {"f1_score": {"value": value}, "loss": {"value": 1 - value}}
        return {"validation": split, "test": split, "evaluations": 15, "seconds": 2.0}

    methods = {name: entry(value) for name, value in test.items()}
    return {"task": "cola", "primary": "f1_score", "seed": seed, "methods": methods}


@pytest.fixture
def comparison() -> Comparison:
    return compare(
        [
            results(41, finetune=0.50, swa=0.55, mobo=0.58, oracle=0.60),
            results(42, finetune=0.54, swa=0.53, mobo=0.60, oracle=0.64),
        ]
    )


def test_mean_and_deviation_over_seeds(comparison: Comparison) -> None:
    rows = {row.method: row for row in comparison.rows}
    assert comparison.seeds == (41, 42)
    assert rows["finetune"].test.mean == pytest.approx(0.52)
    assert rows["finetune"].test.deviation == pytest.approx(0.04 / 2**0.5)
    assert rows["mobo"].test_loss.mean == pytest.approx(0.41)
    assert rows["mobo"].seconds == 2.0


def test_the_share_of_the_distance_to_the_oracle(comparison: Comparison) -> None:
    closed = {row.method: row.closed for row in comparison.rows}
    assert closed["finetune"] == 0.0
    assert closed["mobo"] == pytest.approx((0.59 - 0.52) / (0.62 - 0.52))
    assert closed["oracle"] == 1.0
    without = compare([results(41, finetune=0.5, mobo=0.6)])
    assert all(row.closed is None for row in without.rows)


def test_a_row_that_a_seed_lacks_is_named() -> None:
    without = {**results(42, finetune=0.6, oracle=0.7), "missing": {"mobo": "it diverged"}}
    found = compare([results(41, finetune=0.5, mobo=0.55, oracle=0.6), without])
    rows = {row.method: row for row in found.rows}
    assert (rows["mobo"].test.mean, rows["mobo"].test.n) == (0.55, 1)
    assert rows["mobo"].closed == pytest.approx(0.5)  # of seed 41 alone
    assert found.missing == {"mobo": {42: "it diverged"}}
    for form in (to_markdown(found), to_latex(found)):
        assert "mobo (1 of 2 seeds)" in form
        assert "mobo is missing for seed 42: it diverged" in form


def test_the_wanted_rows_in_their_order_with_their_rules() -> None:
    one = results(41, **{"finetune": 0.5, "mobo": 0.6, "mobo.knee": 0.6, "swa": 0.5})
    rows = compare([one], ["swa", "mobo", "bilevel"]).rows
    assert [row.method for row in rows] == ["swa", "mobo", "mobo.knee"]
    assert compare([one], ["swa", "bilevel"]).missing == {
        "bilevel": {41: "its run has no such row"}
    }


def test_trainings_are_shown_where_they_are_known() -> None:
    one = results(41, swa=0.5, grid=0.6)
    one["methods"]["grid"] |= {"trainings": 3, "total_seconds": 61.0}
    rows = {row.method: row for row in compare([one]).rows}
    assert (rows["grid"].trainings, rows["grid"].total_seconds) == (3, 61.0)
    assert rows["swa"].trainings is None
    assert "| 3 | 15 | 2.0 s | 1 min 01 s |" in to_markdown(compare([one]))


def test_one_seed_has_no_deviation() -> None:
    data = to_json(compare([results(41, swa=0.5)]))
    assert data["rows"][0]["test"] == {"mean": 0.5, "deviation": None, "n": 1}


def test_other_tasks_are_refused() -> None:
    other = {**results(42, swa=0.5), "task": "rte"}
    with pytest.raises(ValueError, match="one task and one primary metric"):
        compare([results(41, swa=0.5), other])


def test_every_form_shows_the_same(comparison: Comparison) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(comparison))
    text = console.export_text()
    for form in (text, to_markdown(comparison)):
        assert "0.5900 ± 0.0141" in form
        assert "70%" in form
    latex = to_latex(comparison)
    assert "0.5900 $\\pm$ 0.0141" in latex
    assert "70\\%" in latex
    assert "f1 score" in latex
    assert latex.count("\\\\") == 1 + len(comparison.rows)
