"""Members that the search trained, and members of several trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fusetune.errors import StageError
from fusetune.members.pool import MemberPool
from fusetune.pipeline import run
from fusetune.recipe_file import parse

FULL = ("search.variant=full", "search.epochs=null", "search.trials=3", "train.epochs=2")


def record(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"stages/{stage}.json").read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_what_a_trial_trained_is_what_training_again_gives(
    tiny_recipe: str, tmp_path: Path
) -> None:
    recipe = parse(tiny_recipe, FULL)
    run(recipe, tmp_path, stage="search")
    kept = list((tmp_path / "work/kept").iterdir())
    best = record(tmp_path, "search")["trial"]
    assert [p.name for p in kept] == [f"trial-{best:04d}"]
    run(recipe, tmp_path, stage="train")
    assert record(tmp_path, "train")["trainings"] == 0
    assert not (tmp_path / "work").exists()
    taken = contents(tmp_path / "members")
    run(recipe, tmp_path, stage="train", force=True)
    assert record(tmp_path, "train")["trainings"] == 1
    assert contents(tmp_path / "members") == taken
    assert len(MemberPool.open(tmp_path / "members")) == 5


def test_light_trials_are_not_kept(tiny_recipe: str, tmp_path: Path) -> None:
    run(parse(tiny_recipe, ["search.trials=2"]), tmp_path, stage="search")
    assert not (tmp_path / "work").exists()


def test_several_seeds_are_measured_against_the_first(tiny_recipe: str, tmp_path: Path) -> None:
    overrides = ["search.trials=0", "train.epochs=2", "train.trajectories=2"]
    more = ["train.members=4", "fuse.methods=[finetune, swa]"]
    recipe = parse(tiny_recipe, [*overrides, *more])
    run(recipe, tmp_path)
    pool = MemberPool.open(tmp_path / "members")
    assert [(m.trajectory, m.step) for m in pool.members] == [
        (1, 60),
        (1, 80),
        (2, 60),
        (2, 80),
    ]
    assert pool.names[2] == "trajectory-2-step-000060"
    first, second = record(tmp_path, "train")["trajectories"]
    assert first["seed"] == 41 != second["seed"]
    assert first["start"] == second["start"] is not None
    tensors = [load_file(pool.members[i].files[0]) for i in (0, 2)]
    assert any(not tensors[0][n].equal(tensors[1][n]) for n in tensors[0])
    methods = json.loads((tmp_path / "results.json").read_text())["methods"]
    assert methods["trajectory-1.swa"]["weights"] == [0.5, 0.5, 0.0, 0.0]
    assert methods["trajectory-1.finetune"]["weights"][2:] == [0.0, 0.0]
    assert methods["trajectory-1.finetune"]["evaluations"] == 2
    assert methods["swa"]["weights"] == [0.25] * 4
    # The first trajectory is the one that a run with it alone has.
    alone = tmp_path / "alone"
    run(parse(tiny_recipe, [*overrides[:2], "train.members=2"]), alone, stage="search")
    run(parse(tiny_recipe, [*overrides[:2], "train.members=2"]), alone, stage="train")
    assert load_file(alone / "members/step-000060/model.safetensors").keys()
    for step in (60, 80):
        own = alone / f"members/step-{step:06d}/model.safetensors"
        named = tmp_path / f"members/trajectory-1-step-{step:06d}/model.safetensors"
        assert own.read_bytes() == named.read_bytes()


def test_the_best_trials_as_trajectories(tiny_recipe: str, tmp_path: Path) -> None:
    trajectories = "train.trajectories={count: 2, source: trials}"
    recipe = parse(tiny_recipe, [*FULL, trajectories, "train.members=4"])
    run(recipe, tmp_path, stage="search")
    assert len(list((tmp_path / "work/kept").iterdir())) == 2
    run(recipe, tmp_path, stage="train")
    train = record(tmp_path, "train")
    assert train["trainings"] == 0
    assert train["trajectories"][0]["trial"] == record(tmp_path, "search")["trial"]
    assert len({t["trial"] for t in train["trajectories"]}) == 2
    taken = contents(tmp_path / "members")
    run(recipe, tmp_path, stage="train", force=True)
    assert record(tmp_path, "train")["trainings"] == 2
    assert contents(tmp_path / "members") == taken


def test_a_trial_that_started_elsewhere_is_refused(tiny_recipe: str, tmp_path: Path) -> None:
    trajectories = ["train.trajectories=2", "train.members=4", "search.trials=1"]
    recipe = parse(tiny_recipe, [*FULL, *trajectories])
    run(recipe, tmp_path, stage="search")
    path = tmp_path / "work/kept/trial-0000/trial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start": "another"}))
    with pytest.raises(StageError, match="Trajectory 2 starts from another model"):
        run(recipe, tmp_path, stage="train")
