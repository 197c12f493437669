"""`bomf`: two stages. Search on a light variant, train in full, then `mobo`."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.errors import RecipeError
from fusetune.pipeline.procedures.procedure import (
    SEARCH_RESULT,
    Candidate,
    sampler_row,
    searching,
)
from fusetune.recipe import Recipe


def bomf(recipe: Recipe) -> Sequence[Candidate]:
    """The recipe's own light variant: frozen layers, shorter trials, or both.

    Raises:
        RecipeError: If the recipe's trials are full trainings.
    """
    row = sampler_row(recipe)
    light = searching(recipe, "bomf", row, objective=SEARCH_RESULT)
    if light.trains_in_trials:
        raise RecipeError(
            "bomf searches on a light variant of the model, but the trials of this recipe "
            "are full trainings.",
            "Give search.variant: {freeze_layers: n}, or {lora_rank: n} with model.lora.",
        )
    return [Candidate("bomf", light, row)]
