"""`swa_cyclic`: the uniform average on a trajectory with the cyclic schedule.

.. [Smith2017] L. Smith. Cyclical Learning Rates for Training Neural Networks. WACV 2017.
.. [Izmailov2018] P. Izmailov et al. Averaging Weights Leads to Wider Optima. UAI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.pipeline.procedures.procedure import Candidate, fixed
from fusetune.recipe import Recipe


def swa_cyclic(recipe: Recipe) -> Sequence[Candidate]:
    """As many cycles as members after `collect_from`; each member is taken where one ends."""
    arguments = recipe.train.arguments
    options = {"cycles": recipe.train.members_each, "start": recipe.train.collect_from}
    if arguments.get("lr_scheduler_type") == "cyclic":
        given = arguments.get("lr_scheduler_kwargs") or {}
        options |= {name: given[name] for name in ("floor",) if name in given}
    changed = fixed(recipe, "swa", lr_scheduler_type="cyclic", lr_scheduler_kwargs=options)
    return [Candidate("swa_cyclic", changed, "swa")]
