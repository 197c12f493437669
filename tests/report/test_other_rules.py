from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusetune.objective import LOSS, Objective
from fusetune.report.tables import grid
from fusetune.report.verdict import verdict

OBJECTIVES = (LOSS, Objective("f1", "maximize"), Objective("accuracy", "maximize"))


def with_rules(results: dict[str, Any], chosen: str) -> dict[str, Any]:
    methods = dict(results["methods"])
    for rule, value in {"consensus": 0.8911, "knee": 0.8777}.items():
        entry = dict(methods["mobo"])
        entry["test"] = {**entry["test"], "f1": {"value": value, "low": 0.85, "high": 0.9}}
        methods[f"mobo.{rule}"] = entry
    return {**results, "methods": methods, "chosen": chosen}


def test_one_sentence_says_what_the_other_rules_would_have_given(
    results: Callable[..., dict[str, Any]],
) -> None:
    details = verdict(with_rules(results(), "mobo.consensus"), OBJECTIVES).details
    sentence = (
        "Other rules for the choice, on the same evaluations, would have given test F1: "
        "mobo 0.8803, mobo.knee 0.8777."
    )
    assert details.count(sentence) == 1


def test_nothing_is_said_where_there_was_one_rule(
    results: Callable[..., dict[str, Any]],
) -> None:
    assert "Other rules" not in str(verdict(results(), OBJECTIVES))


def test_every_rule_is_a_row(results: Callable[..., dict[str, Any]]) -> None:
    rows = grid(with_rules(results(), "mobo.knee"), OBJECTIVES).rows
    assert [r.method for r in rows][-3:] == ["mobo", "mobo.consensus", "mobo.knee"]
    assert [r.method for r in rows if r.chosen] == ["mobo.knee"]
