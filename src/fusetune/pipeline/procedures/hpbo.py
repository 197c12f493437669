"""`hpbo`: `finetune` at the λ found by search on the full model."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.pipeline.procedures.procedure import SEARCH_RESULT, Candidate, searching
from fusetune.recipe import Recipe


def hpbo(recipe: Recipe) -> Sequence[Candidate]:
    """Every trial is a full training; the best one is not trained again."""
    full = searching(
        recipe, "hpbo", "finetune", variant="full", epochs=None, objective=SEARCH_RESULT
    )
    return [Candidate("hpbo", full, "finetune")]
