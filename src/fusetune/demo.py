"""The demo: the main job on data that fusetune makes itself and on a packaged model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fusetune.recipe import Recipe
from fusetune.recipe_file import load, ready
from fusetune.tasks.demo import write

SIZES = {"train": 1600, "validation": 300, "test": 600}  # rows; some minutes on two cores


def demo_recipe(out: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Write the embedded data set beside the run and return the recipe that uses it.

    Args:
        out: The run folder; the data go to its `data` folder.
        overrides: Dotted keys.
    """
    recipe = load(ready()["demo"], [f"task.data={out / 'data'}", *overrides])
    write(out / "data", seed=recipe.seed, **SIZES)
    return recipe
