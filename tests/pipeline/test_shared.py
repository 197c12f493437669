from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fusetune.members.manifest import write_manifest
from fusetune.pipeline.kept import KeptTrial
from fusetune.pipeline.shared import SharedTraining, SharedTrainings, needed_twice
from fusetune.recipe import Recipe
from fusetune.recipe_file import derive, find, load
from fusetune.run import RunFolder

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


def test_what_another_run_trained_in_full_is_found(recipe: Recipe, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "fixed")
    names = ["step-000002", "step-000004"]
    for step, name in zip((2, 4), names, strict=True):
        (run.members / name).mkdir(parents=True)
        (run.members / name / "model.safetensors").write_bytes(b"weights")
        write_manifest(run.members / name, step=step, epoch=None)
    record = {
        "params": {},
        "members": names,
        "steps": 4,
        "start": None,
        "seconds": 7.5,
        "from_search": False,
        "attempts": [],
    }
    run.finish("train", {"trajectories": [record]})
    plain = derive(recipe, {"search.trials": 0, "fuse.methods": ["swa"]})
    shared = SharedTrainings(tmp_path / "shared", {run: plain})

    own = {"learning_rate": 1e-4, "weight_decay": 0.0}  # by name what the recipe has anyway
    found = shared.find(recipe, own, tmp_path / "mine")
    assert found == SharedTraining(KeptTrial(own, (2, 4), 4), (), 7.5)
    assert (tmp_path / "mine/step-000004/model.safetensors").stat().st_nlink == 2
    assert shared.find(recipe, own | {"weight_decay": 0.1}, tmp_path / "other") is None
    scored = derive(recipe, {"task.metrics": ["accuracy", "brier"]})
    assert shared.find(scored, own, tmp_path / "scored") is not None
    assert shared.find(derive(recipe, {"seed": 7}), own, tmp_path / "other") is None

    for changed in ({"from_search": True}, {"attempts": [{}, {}]}):  # its seconds are not all
        run.finish("train", {"trajectories": [record | changed]})
        assert shared.find(recipe, own, tmp_path / "other") is None
    run.finish("train", {"trajectories": [record]})
    shutil.rmtree(run.members / names[1])
    assert shared.find(recipe, own, tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_trials_are_kept_only_where_another_search_wants_them(
    recipe: Recipe, tmp_path: Path
) -> None:
    shared = SharedTrainings(tmp_path / "shared", trials=False)
    shared.keep(recipe, tmp_path, TRAINING)
    assert not shared.folder.exists()
