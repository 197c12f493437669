"""The demo: the main job on data that fusetune makes itself and on a packaged model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fusetune.errors import RunError
from fusetune.members.claim import refuse_links_out
from fusetune.members.disk import full_disk_is_an_error
from fusetune.recipe import Recipe
from fusetune.recipe_file import load, ready
from fusetune.tasks.demo import write

SIZES = {"train": 1600, "validation": 300, "test": 600}  # rows; some minutes on two cores


def demo_recipe(out: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Write the embedded data set beside the run and return the recipe that uses it.

    Args:
        out: The run folder; the data go to its `data` folder.
        overrides: Dotted keys.

    Raises:
        RunError: If the folder cannot be written to.
        StageError: If the disk is full.
    """
    recipe = load(ready()["demo"], [f"task.data={out / 'data'}", *overrides])
    try:
        with full_disk_is_an_error(out):
            if out.is_dir():
                refuse_links_out(out)
            write(out / "data", seed=recipe.seed, **SIZES)
    except OSError as error:
        raise RunError(
            f"The run folder {out} cannot be written to: {error.strerror}.",
            "Give another folder with --out.",
        ) from error
    return recipe
