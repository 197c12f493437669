"""`bilevel`: the search over λ by the fused model (Bilevel-BO-SWA), then `mobo`.

`bilevel:swa` is the outer search around another way of fusing (workshop paper, Table 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.pipeline.procedures.procedure import Candidate, sampler_row, searching
from fusetune.recipe import Recipe


def bilevel(recipe: Recipe, method: str = "") -> Sequence[Candidate]:
    """Every trial is a full training whose members are fused; the best is fused again.

    Args:
        recipe: The base.
        method: What fuses the members of each trial and of the best one; the sampler of
            the recipe by default.
    """
    name = f"bilevel:{method}" if method else "bilevel"
    row = method or sampler_row(recipe)
    objective = f"fused:{method}" if method else "fused"
    full = searching(recipe, name, row, variant="full", epochs=None, objective=objective)
    return [Candidate(name.replace(":", "-"), full, row)]
