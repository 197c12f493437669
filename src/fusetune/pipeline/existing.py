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
from fusetune.members.adapter import AdapterMember
from fusetune.members.base import BaseModel
from fusetune.members.fetch import fetch, is_url, source_of
from fusetune.members.member import Member
from fusetune.members.pool import MemberPool, inspect
from fusetune.pipeline.context import Context
from fusetune.recipe import Recipe

NEED_TRAINING = ("twa", "fisher")
"""Methods that look at training rows."""

BRING_BACK = "Bring the checkpoint back, or start anew with --force."


def find(recipe: Recipe) -> tuple[Member, ...]:
    """The checkpoints that the recipe names; those in other formats are only looked at.

    Args:
        recipe: With `train.checkpoints`.

    Raises:
        MemberError: If there are fewer than two, one is damaged, or pickled without consent,
            or they do not fit together.
        RecipeError: If their number is not `train.members`, or they are adapters and
            `model.lora` is not set, or the other way round.
    """
    assert recipe.train.checkpoints is not None
    found = inspect(
        recipe.train.checkpoints, allow_pickle=recipe.model.allow_pickle, own_model=True
    )
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
    return found.members


def check(context: Context) -> tuple[Member, ...]:
    """Find what is wrong with the checkpoints, and with methods that need more than them.

    Returns:
        The checkpoints; none where an earlier start has recorded them.

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
    members = find(recipe) if context.folder.done("train") is None else ()
    inside = [m for m in members if m.path.resolve() == Path(recipe.model.name).resolve()]
    if recipe.fuse.base_member and inside:
        raise StageError(
            "fuse.base_member needs the model that the training began with; model.name is the "
            f"checkpoint {recipe.model.name}.",
            "Give that model (--model, or model.name), or leave out fuse.base_member.",
        )
    return tuple(members)


def record(context: Context) -> dict[str, Any]:
    """The record of a stage `train` that trains nothing: where the members are."""
    started = time.perf_counter()
    members = find(context.recipe)
    return {
        "params": {},
        "steps": max((m.step for m in members if m.step is not None), default=None),
        "members": [member.name for member in members],
        "paths": [source_of(m.path) or str(m.path.resolve()) for m in members],
        "sha256": [member.sha256 for member in members],
        "seconds": time.perf_counter() - started,
        "trainings": 0,
        "trajectories": [],
    }


def open_recorded(
    recorded: Mapping[str, Any],
    base: BaseModel | None = None,
    *,
    allow_pickle: bool = False,
    copies: Path | None = None,
) -> MemberPool:
    """The members that `record` found, in its order; those in other formats are converted.

    Args:
        recorded: Of the stage `train`.
        base: What adapters are laid on.
        allow_pickle: Consent to pickled members.
        copies: Where copies as safetensors are kept.

    Raises:
        MemberError: If one is gone or has changed.
    """
    paths: Sequence[str] = recorded["paths"]
    places = [fetch(path) if is_url(path) else Path(path) for path in paths]
    for path, place in zip(paths, places, strict=True):
        if not place.exists():
            raise MemberError(f"{path}, a member of this run, is gone.", BRING_BACK)
    pool = MemberPool.of(places, base, allow_pickle, copies)
    for member, digest in zip(pool.members, recorded["sha256"], strict=True):
        if member.sha256 != digest:
            raise MemberError(
                f"The weights of {member.path} are not those that this run began with.",
                BRING_BACK,
            )
    return pool
