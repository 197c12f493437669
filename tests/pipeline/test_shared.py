from __future__ import annotations

from pathlib import Path

import pytest

from fusetune.pipeline.kept import KeptTrial
from fusetune.pipeline.shared import SharedTraining, SharedTrainings, needed_twice
from fusetune.recipe import Recipe
from fusetune.recipe_file import derive, find, load

PARAMS = {"learning_rate": 1e-4}
TRAINING = SharedTraining(
    KeptTrial(PARAMS, (2, 4), 4), ((2, {"loss": 0.1 + 0.2}), (4, {"loss": 1 / 3})), 12.5
)


@pytest.fixture
def recipe() -> Recipe:
    return load(find("demo"))


@pytest.fixture
def kept(recipe: Recipe, tmp_path: Path) -> SharedTrainings:
    source = tmp_path / "trial/members/step-000002"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    shared = SharedTrainings(tmp_path / "shared")
    shared.keep(recipe, source.parent, TRAINING)
    return shared


def test_a_training_comes_back_as_it_was(
    recipe: Recipe, kept: SharedTrainings, tmp_path: Path
) -> None:
    other = derive(recipe, {"search.objective": "fused:swa", "fuse.methods": ["swa"]})
    assert kept.take(other, PARAMS, tmp_path / "mine") == TRAINING
    mine = tmp_path / "mine/step-000002/model.safetensors"
    assert mine.read_bytes() == b"weights"
    assert mine.stat().st_nlink == 3  # no space is taken twice


@pytest.mark.parametrize(
    "changes",
    [{"seed": 7}, {"train.members": 4}, {"train.epochs": 1.5}, {"model.max_length": 9}],
)
def test_what_decides_the_members_tells_trainings_apart(
    recipe: Recipe, kept: SharedTrainings, tmp_path: Path, changes: dict[str, object]
) -> None:
    assert kept.take(derive(recipe, changes), PARAMS, tmp_path / "mine") is None
    assert kept.take(recipe, {"learning_rate": 2e-4}, tmp_path / "mine") is None
    assert not (tmp_path / "mine").exists()


def test_only_full_trainings_are_worth_sharing(recipe: Recipe) -> None:
    full = derive(recipe, {"search.variant": "full", "search.epochs": None})
    assert needed_twice([full, full])
    assert not needed_twice([full, recipe, recipe])
