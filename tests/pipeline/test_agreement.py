from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusetune.pipeline.agreement import FILE, subject, warnings
from fusetune.recipe import Recipe
from fusetune.recipe_file import parse

RECIPE = """
task: {data: ./rte, text: [a, b], metrics: [accuracy]}
model: {name: minilm}
search:
  trials: 4
  variant: {freeze_layers: 2}
  space: {learning_rate: {low: 1.0e-6, high: 1.0e-4, log: true}}
"""


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = {"subject": subject(recipe()), "misleads": True, "sentence": "It does not."}
    (tmp_path / FILE).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    "overrides", [[], ["seed=7"], ["train.epochs=2"], ["search.trials=9"], ["task.name=x"]]
)
def test_a_search_of_the_same_subject_is_warned(folder: Path, overrides: list[str]) -> None:
    (text,) = warnings(folder, recipe(*overrides))
    assert "light variant that misleads. It does not." in text
    assert "search.variant=full" in text


@pytest.mark.parametrize(
    "override",
    [
        "search.variant=full",
        "search.variant={freeze_layers: 3}",
        "search.trials=0",
        "task.data=./mrpc",
        "model.name=roberta",
    ],
)
def test_another_search_is_not(folder: Path, override: str) -> None:
    assert warnings(folder, recipe(override)) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert warnings(tmp_path, recipe()) == []


def test_a_good_variant_is_no_cause_for_a_warning(folder: Path) -> None:
    content = json.loads((folder / FILE).read_text()) | {"misleads": False}
    (folder / FILE).write_text(json.dumps(content))
    assert warnings(folder, recipe()) == []
    assert warnings(folder / "nowhere", recipe()) == []
