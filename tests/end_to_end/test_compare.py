from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusetune.cli import app


@pytest.fixture
def recipe(tiny_recipe: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe)
    return path


def compare(recipe: Path, out: Path, seeds: str) -> str:
    arguments = ["compare", str(recipe), "search.trials=0", "train.epochs=2", "--out", str(out)]
    result = CliRunner().invoke(
        app, [*arguments, "--seeds", seeds, "--methods", "finetune,swa,greedy"]
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_seeds_join_and_what_is_done_is_not_done_again(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    compare(recipe, out, "41")
    before = (out / "seed-41/results.json").read_bytes()
    output = compare(recipe, out, "41,42")
    assert (out / "seed-41/results.json").read_bytes() == before
    assert "complete, nothing to do" in output
    table = json.loads((out / "comparison.json").read_text())
    assert table["seeds"] == [41, 42]
    assert [row["method"] for row in table["rows"]] == ["finetune", "swa", "greedy"]
    value = [
        json.loads((out / f"seed-{s}/results.json").read_text())["methods"]["swa"]["test"][
            "accuracy"
        ]["value"]
        for s in (41, 42)
    ]
    assert table["rows"][1]["test"]["mean"] == pytest.approx(sum(value) / 2)
    assert (out / "comparison.md").read_text().startswith("| method |")
    assert "\\toprule" in (out / "comparison.tex").read_text()


def test_seeds_must_be_numbers(recipe: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(recipe), "--seeds", "41,x"])
    assert result.exit_code == 2
    assert "--seeds must be whole numbers" in result.output
