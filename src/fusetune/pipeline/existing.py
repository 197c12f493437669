"""Members that exist already: checkpoints of a run that somebody else's program made.

They stay where they are. The stage `train` records their places and digests; every later use
opens those places and no others, and notices if what stands there has changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.errors import MemberError, RecipeError, StageError
from fusetune.members.adapter import AdapterMember, open_member
from fusetune.members.base import BaseModel
from fusetune.members.pool import MemberPool, inspect
from fusetune.pipeline.context import Context
from fusetune.recipe import Recipe

NEED_TRAINING = ("twa", "fisher")
"""Methods that look at training rows."""

BRING_BACK = "Bring the checkpoint back, or start anew with --force."


def find(recipe: Recipe, base: BaseModel | None = None) -> MemberPool:
    """The checkpoints that the recipe names; no tensor is loaded.

    Args:
        recipe: With `train.checkpoints`.
        base: What adapters are laid on.

    Raises:
        MemberError: If there are fewer than two, one is damaged or pickled, or they do not
            fit together.
        RecipeError: If their number is not `train.members`, or they are adapters and
            `model.lora` is not set, or the other way round.
    """
    assert recipe.train.checkpoints is not None
    found = inspect(recipe.train.checkpoints)
    if found.errors:
        raise found.errors[0]
    count = len(found.members)
    if count != recipe.train.members:
        raise RecipeError(
            f"train.checkpoints finds {count} checkpoints, and train.members is "
            f"{recipe.train.members}.",
            f"Set train.members to {count}.",
        )
    adapters = isinstance(found.members[0], AdapterMember)
    if adapters != (recipe.model.lora is not None):
        raise RecipeError(
            f"train.checkpoints are {'adapters' if adapters else 'whole models'}, and "
            f"model.lora is {'not ' if adapters else ''}set.",
            f"{'Set' if adapters else 'Leave out'} model.lora.",
        )
    return MemberPool(found.members, base)


def check(context: Context) -> None:
    """Find what is wrong with the checkpoints, and with methods that need more than them.

    Raises:
        FusetuneError: As `find`; and if a method needs training rows and there are none.
    """
    recipe, splits = context.recipe, context.task.splits
    wanted = [name for name in NEED_TRAINING if name in recipe.fuse.rows]
    if wanted and "train" not in splits:
        raise StageError(
            f"{' and '.join(wanted)} need training rows, and the data set has only "
            f"{', '.join(splits)}.",
            "Give the training data too (task.data.train), or leave out of fuse.methods.",
        )
    if context.folder.done("train") is None:
        find(recipe, context.base)


def record(context: Context) -> dict[str, Any]:
    """The record of a stage `train` that trains nothing: where the members are."""
    started = time.perf_counter()
    members = find(context.recipe, context.base).members
    return {
        "params": {},
        "steps": max((m.step for m in members if m.step is not None), default=None),
        "members": [member.name for member in members],
        "paths": [str(member.path.resolve()) for member in members],
        "sha256": [member.sha256 for member in members],
        "seconds": time.perf_counter() - started,
        "trainings": 0,
        "trajectories": [],
    }


def open_recorded(recorded: Mapping[str, Any], base: BaseModel | None = None) -> MemberPool:
    """The members that `record` found, in its order.

    Args:
        recorded: Of the stage `train`.
        base: What adapters are laid on.

    Raises:
        MemberError: If one is gone or has changed.
    """
    paths: Sequence[str] = recorded["paths"]
    members = []
    for path, digest in zip(paths, recorded["sha256"], strict=True):
        if not Path(path).is_dir():
            raise MemberError(f"{path}, a member of this run, is gone.", BRING_BACK)
        member = open_member(Path(path))
        if member.sha256 != digest:
            raise MemberError(
                f"The weights of {path} are not those that this run began with.",
                BRING_BACK,
            )
        members.append(member)
    return MemberPool(members, base)
