"""Tries of the window and of the number of members, all from one training.

Keeping members changes nothing in a training: those of another window, or more of them, are
checkpoints of the same trajectory. One training keeps many, and each try gets those that are
nearest to its own steps, at most half a spacing away.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusetune.members.disk import link, replaced_folder
from fusetune.members.manifest import read_manifest
from fusetune.pipeline import run
from fusetune.pipeline.comparison_plan import make_plan
from fusetune.pipeline.display import Display
from fusetune.recipe import Recipe
from fusetune.recipe_file import derive
from fusetune.report.comparison import BASE
from fusetune.run import RunFolder
from fusetune.training.collect import plan_steps

TRIES = ("window-25", "window-75", "members-5", "members-15", "members-30")
MEMBERS, COLLECT_FROM = 60, 0.25
SOURCE = "dense"
"""Name of the folder, beside those of the tries."""


def trained(
    own: Recipe, attempt: str, wanted: Recipe, seed: int, folder: Path, display: Display
) -> dict[RunFolder, Recipe]:
    """A run folder whose training is that of the try, made from the one training of all.

    Args:
        own: With the protocol's own settings.
        attempt: One of `TRIES`.
        wanted: With the settings of the try.
        seed: Of both.
        folder: Of the task and seed; gets a folder for the training and one for each try.
        display: Where progress is shown.

    Returns:
        The run folder → the recipe that it is trained by.

    Raises:
        FusetuneError: As `fusetune run`.
    """
    (recipe,) = make_plan(wanted, [BASE], seed).runs.values()
    target = RunFolder(folder / attempt)
    if target.done("train") is None:
        many = {
            "train.members": MEMBERS,
            "train.collect_from": COLLECT_FROM,
            "fuse.evaluations": MEMBERS,  # a recipe has at least one for each; none is made
        }
        (dense,) = make_plan(derive(own, many), [BASE], seed).runs.values()
        for stage in ("search", "train"):
            source = run(dense, folder / SOURCE, stage=stage, display=display)
        _take(source, target, recipe)
    return {target: recipe}


def nearest(wanted: Sequence[int], kept: Sequence[int]) -> list[int]:
    """The places of the kept steps that are nearest to the wanted ones."""
    distance = np.abs(np.subtract.outer(np.array(wanted), np.array(kept)))
    return [int(i) for i in distance.argmin(axis=1)]


def _take(source: RunFolder, target: RunFolder, recipe: Recipe) -> None:
    """Link the members that the recipe would keep, and record them as a training of its own."""
    record = source.done("train")
    assert record is not None
    (trajectory,) = record["trajectories"]
    steps = [_step(source.members / name) for name in record["members"]]
    wanted = plan_steps(
        trajectory["steps"], recipe.train.members_each, recipe.train.collect_from
    )
    names = [record["members"][i] for i in nearest(wanted, steps)]
    with replaced_folder(target.members) as new:
        for name in names:
            shutil.copytree(source.members / name, new / name, copy_function=link)
    trajectory = {**trajectory, "members": names}
    target.finish("train", {**record, "members": names, "trajectories": [trajectory]})


def _step(member: Path) -> int:
    manifest = read_manifest(member)
    assert manifest is not None  # the training ended: all its members are complete
    return manifest.step
