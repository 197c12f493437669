from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import RecipeError, RunError
from fusetune.pipeline import transfer as transfer_module
from fusetune.pipeline.display import Display
from fusetune.pipeline.transfer import transfer
from fusetune.recipe import Recipe
from fusetune.recipe_file import parse

trial_module = importlib.import_module("fusetune.pipeline.trial")
SHORT = ("train.members=3", "search.fused_evaluations=4", "search.epochs=0.5")


@pytest.fixture
def recipe(tiny_recipe: str) -> Recipe:
    return parse(tiny_recipe, SHORT)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models are trained; setting item 1 to n interrupts the n-th training."""
    count = [0, -1]
    train = trial_module.train_trajectory

    def counted(*args: Any, **settings: Any) -> int:
        count[0] += 1
        steps: int = train(*args, **settings)
        if count[0] == count[1]:
            raise KeyboardInterrupt
        return steps

    monkeypatch.setattr(trial_module, "train_trajectory", counted)
    return count


def test_interrupted_extended_and_repeated(
    recipe: Recipe, tmp_path: Path, trained: list[int]
) -> None:
    whole = transfer(recipe, tmp_path / "whole", trials=3)
    assert trained[0] == 6
    assert not (tmp_path / "whole/transfer/work").exists()

    trained[:] = [0, 5]  # inside the second full training
    with pytest.raises(KeyboardInterrupt):
        transfer(recipe, tmp_path / "cut", trials=3)
    assert not (tmp_path / "cut/transfer.json").exists()
    trained[:] = [0, -1]
    assert transfer(recipe, tmp_path / "cut", trials=3) == whole
    assert trained[0] == 2  # the one that was cut off, and the last

    trained[0] = 0
    assert transfer(recipe, tmp_path / "cut", trials=3) == whole
    assert trained[0] == 0
    more = transfer(recipe, tmp_path / "cut", trials=4)
    assert trained[0] == 2
    assert more["trials"][:3] == whole["trials"]
    assert more["light_full"]["n"] == 4


def test_what_is_recorded(recipe: Recipe, tmp_path: Path) -> None:
    content = transfer(recipe, tmp_path, trials=2)
    assert json.loads((tmp_path / "transfer.json").read_text()) == content
    for row in content["trials"]:
        assert set(row["params"]) == set(recipe.search.space)
        assert row["reason"] == ""
        for key in ("light", "full", "best_member", "fused"):
            assert 0.0 <= row[key] <= 1.0
        # The search over w begins with the members.
        assert row["fused"] >= row["best_member"]
    assert content["light_full"]["n"] == content["best_member_fused"]["n"] == 2
    assert content["misleads"] is False  # two λ are too few to say so
    assert content["subject"]["variant"]["freeze_layers"] == 1
    assert "So few as 2 λ say little" in content["sentence"] or "same" in content["sentence"]
    assert "Best member and fused model" in (tmp_path / "transfer.html").read_text()
    # Another recipe must not be mixed with this one; what does not matter may differ.
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RunError, match="seed: 41 → 7"):
        transfer(other, tmp_path, trials=2)
    methods = recipe.fuse.model_copy(update={"methods": ["finetune", "swa"]})
    assert transfer(recipe.model_copy(update={"fuse": methods}), tmp_path, trials=2) == content


def test_a_start_anew(recipe: Recipe, tmp_path: Path, trained: list[int]) -> None:
    transfer(recipe, tmp_path, trials=2)
    other = recipe.model_copy(update={"seed": 7})
    content = transfer(other, tmp_path, trials=2, force=True)
    assert content["seed"] == 7
    assert trained[0] == 8


def test_a_failed_training_is_told(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trial_module.train_trajectory
    count = 0

    def failing(*args: Any, **settings: Any) -> int:
        nonlocal count
        count += 1
        if count == 1:
            raise RuntimeError("out of memory")
        return train(*args, **settings)

    monkeypatch.setattr(trial_module, "train_trajectory", failing)
    content = transfer(recipe, tmp_path, trials=2)
    first = content["trials"][0]
    assert first["light"] is None
    assert first["full"] is not None
    assert first["reason"] == "light: RuntimeError: out of memory"
    assert content["light_full"]["n"] == 1
    assert content["best_member_fused"]["n"] == 2


def test_a_search_is_warned(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "misleads", lambda found: True)
    recipe = parse(tiny_recipe, (*SHORT, "search.trials=1"))
    transfer(recipe, tmp_path, trials=2)
    warned: list[str] = []
    monkeypatch.setattr(Display, "warn", lambda self, text: warned.append(text))
    from fusetune.pipeline import run

    run(recipe, tmp_path, stage="search")
    assert len([text for text in warned if "light variant that misleads" in text]) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.variant=full", "compares a light variant with the full model"),
        ("search={trials: 0, variant: {freeze_layers: 1}}", "search.space is empty"),
    ],
)
def test_a_recipe_without_a_variant_or_a_space(
    tiny_recipe: str, tmp_path: Path, override: str, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    if override.startswith("search={"):
        start, end = tiny_recipe.index("search:"), tiny_recipe.index("train:")
        tiny_recipe = (
            tiny_recipe[:start]
            + "search: {trials: 0, variant: {freeze_layers: 1}}\n"
            + tiny_recipe[end:]
        )
        override = "seed=41"
    path.write_text(tiny_recipe)
    result = CliRunner().invoke(
        app, ["transfer", str(path), override, "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match=message):
        transfer(parse(tiny_recipe, [override]), tmp_path / "out")
