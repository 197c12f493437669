from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusetune.objective import LOSS, Objective
from fusetune.report.content import EvaluationRow, MemberRow, RunRecord, TrialRow
from fusetune.report.html import render, write

EVIL = "<script>alert('x')</script>"
Record = Callable[..., RunRecord]
Results = Callable[..., dict[str, Any]]


def body(page: str) -> str:
    """The page without Plotly's own code."""
    library = r"<script[^>]*>(?:(?!</script>).){100000,}</script>"
    return re.sub(library, "", page, flags=re.DOTALL)


def test_one_file_of_bearable_size_that_loads_nothing(record: Record, tmp_path: Path) -> None:
    write(record(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 8_000_000
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", body(page))
    assert loaded == []
    assert "@import" not in body(page)
    assert "cdn" not in body(page).lower()


def test_shows_the_table_with_intervals_and_the_verdict(record: Record) -> None:
    page = body(render(record()))
    for text in ("finetune", "swa", "greedy", "mobo", "0.8803", "[0.859, 0.899]", "chosen"):
        assert text in page
    assert "0.0148 better than the best single checkpoint" in page
    assert "12 of 408 validation texts also stand in train" in page
    assert "per_device_train_batch_size" in page or "per device train batch size" in page


def test_the_head_counts_what_the_choice_added_to_the_search(
    record: Record, results: Results
) -> None:
    content = results()
    content["methods"]["mobo.consensus"] = content["methods"]["mobo"] | {"evaluations": 93}
    content["methods"]["oracle"] = content["methods"]["mobo"] | {"evaluations": 500}
    assert "93 evaluations" in body(render(record(results=content)))


def test_text_from_data_sets_cannot_run(record: Record, results: Results) -> None:
    content = results(task=EVIL)
    content["methods"][EVIL] = content["methods"]["swa"]
    spoiled = record(
        results=content,
        model=EVIL,
        notes=(EVIL,),
        recipe=EVIL,
        usage=EVIL,
        fused=EVIL,
        environment={EVIL: {EVIL: EVIL}},
        created=EVIL,
        members=tuple(MemberRow(EVIL, {"loss": 1.0, "f1": 0.5}, i) for i in range(15)),
        trials=(TrialRow(0, "FAIL", {EVIL: EVIL}, None, None, EVIL),),
    )
    page = render(spoiled)
    assert EVIL not in page
    assert "alert(&#39;x&#39;)" in page
    ours = record()
    assert page.count("<script") == render(ours).count("<script")


def test_what_is_missing_is_left_out(record: Record, results: Results) -> None:
    content = results()
    del content["comparison"]
    for entry in content["methods"].values():
        entry["weights"] = None
    bare = record(
        results=content,
        evaluations=(),
        hypervolume=(),
        trials=(),
        cost={},
        notes=(),
        recipe="",
        environment={},
        usage="",
    )
    page = body(render(bare))
    assert "0.8803" in page
    for heading in ("Search for hyper-parameters", "Pareto front", "Cost"):
        assert f">{heading}<" not in page


def test_values_that_are_not_numbers(record: Record, results: Results) -> None:
    content = results()
    content["methods"]["swa"]["test"]["f1"] = {"value": None, "low": None, "high": None}
    rows = tuple(
        EvaluationRow(
            tuple(1.0 if j == i else 0.0 for j in range(15)),
            {"loss": float("nan"), "f1": 0.5, "accuracy": 0.5},
        )
        for i in range(3)
    )
    page = render(record(results=content, evaluations=rows, hypervolume=()))
    assert "NaN" not in body(page).replace("became NaN", "")
    assert "–" in body(page)


def test_one_objective_and_a_metric_to_be_minimised(record: Record, results: Results) -> None:
    content = results(primary="loss")
    for entry in content["methods"].values():
        for split in ("validation", "test"):
            entry[split] = {"loss": entry[split]["loss"]}
    content["comparison"] = {}
    evaluation = EvaluationRow(tuple([1 / 15] * 15), {"loss": 0.4})
    page = body(
        render(
            record(
                results=content, objectives=(LOSS,), evaluations=(evaluation,), hypervolume=()
            )
        )
    )
    assert "loss" in page
    error = Objective("word_error_rate", "minimize")
    members = tuple(
        MemberRow(f"m{i}", {"loss": 1.0, "word_error_rate": 0.1 * i}) for i in range(15)
    )
    content = results(primary="word_error_rate")
    for entry in content["methods"].values():
        for split in ("validation", "test"):
            entry[split] = {"loss": entry[split]["loss"], "word_error_rate": entry[split]["f1"]}
    assert "word error rate" in render(
        record(
            results=content,
            objectives=(LOSS, error),
            members=members,
            evaluations=(),
            hypervolume=(),
        )
    )
