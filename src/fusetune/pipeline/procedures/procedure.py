"""The one signature that every procedure follows, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fusetune.errors import RecipeError
from fusetune.recipe import Recipe
from fusetune.recipe_file import derive

FIXED = "fixed"
"""Name of the run with λ as train.arguments has it, which all methods share."""

SEARCH_RESULT = "best_member"
"""The objective of a search that fuses nothing."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a run.

    Attributes:
        run: Name of the run, and of its folder.
        recipe: Of the run; its methods include the row's.
        row: The row in the run's results.json.
    """

    run: str
    recipe: Recipe
    row: str


class Procedure(Protocol):
    """Says which runs are to be made; `grid`, `hpbo`, … are functions of this shape."""

    def __call__(self, recipe: Recipe) -> Sequence[Candidate]:
        """Derive runs from a recipe.

        Args:
            recipe: The base, with the seed in place.

        Returns:
            At least one; of several, the one with the best validation values is the result.

        Raises:
            RecipeError: If the recipe lacks what the procedure needs.
        """
        ...


def fixed(recipe: Recipe, method: str, **changes: Any) -> Recipe:
    """The recipe without a search: λ is `train.arguments`, with changes by their name."""
    without: dict[str, Any] = {
        "search.trials": 0,
        "search.objective": SEARCH_RESULT,
        "fuse.methods": list(dict.fromkeys(["finetune", method])),
    }
    if recipe.train.trajectories.source == "trials":
        without["train.trajectories"] = {"count": 1}
    arguments = {f"train.arguments.{name}": value for name, value in changes.items()}
    return derive(recipe, without | arguments, name=f"The recipe for {method}")


def searching(recipe: Recipe, procedure: str, method: str, **search: Any) -> Recipe:
    """The recipe with its search, changed by keys of the section `search`.

    Raises:
        RecipeError: If the recipe has no search.
    """
    if recipe.search.trials == 0:
        raise RecipeError(
            f"{procedure} searches λ, but search.trials is 0.",
            "Give search.trials and search.space.",
        )
    changes = {f"search.{key}": value for key, value in search.items()}
    methods = list(dict.fromkeys(["finetune", method]))
    return derive(
        recipe, {**changes, "fuse.methods": methods}, name=f"The recipe for {procedure}"
    )


def sampler_row(recipe: Recipe) -> str:
    """The row of the search over w: `mobo`, or the sampler in its place."""
    return recipe.fuse.sampler
