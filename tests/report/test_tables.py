from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from fusetune.members.member import Member
from fusetune.report.content import RunRecord
from fusetune.report.members import members_table
from fusetune.report.tables import methods_table

Results = Callable[..., dict[str, Any]]


def shown(table: Table, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_table_has_every_figure(
    results: Results, record: Callable[..., RunRecord]
) -> None:
    text = shown(methods_table(results(), record().objectives))
    for method in ("finetune", "swa", "greedy", "mobo"):
        assert method in text
    assert "0.8803" in text
    assert "0.859–0.899" in text
    assert "← chosen" in text
    assert "1 min 36 s" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_wider_than_the_terminal(
    results: Results, record: Callable[..., RunRecord], width: int
) -> None:
    lines = shown(methods_table(results(), record().objectives), width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("metrics", [["loss", "f1"], ["loss", "f1", "accuracy"]])
def test_long_names_crop_nothing(
    results: Results, record: Callable[..., RunRecord], metrics: list[str]
) -> None:
    content = results(chosen="mobo.consensus")
    content["methods"]["mobo.consensus"] = content["methods"].pop("mobo")
    for entry in content["methods"].values():
        for split in ("validation", "test"):
            entry[split] = {name: entry[split][name] for name in metrics}
    objectives = tuple(o for o in record().objectives if o.name in metrics)
    text = shown(methods_table(content, objectives), 80)
    for whole in ("mobo.consensus", "1 min 36 s", "0.859–0.899", "5.6 s"):
        assert whole in text


def test_members_table_names_what_differs() -> None:
    members = [
        Member(Path(f"out/checkpoint-{step}"), step, {}, {"architectures": ["BertModel"]}, ())
        for step in (9, 1000)
    ]
    text = shown(members_table(members))
    assert "checkpoint-9" in text
    assert "1,000" in text
    assert "BertModel" in text
