"""Tries of what a search makes of its trials: those of the own settings are not made again.

Another rule for choosing λ, or more of them, reads the same trials, and further trials go on
where those end: a trial follows from its number and those before it. So the try's study begins
as a copy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna

from benchmarks.protocols import settings
from benchmarks.protocols.job import Job
from fusetune.optimization.storage import open_existing, open_storage, quiet, storing
from fusetune.pipeline import run
from fusetune.pipeline.comparison_plan import make_plan
from fusetune.pipeline.context import SEARCH
from fusetune.pipeline.display import Display
from fusetune.pipeline.procedures.procedure import FIXED
from fusetune.recipe import Recipe
from fusetune.report.comparison import BASE
from fusetune.run import RunFolder

TRIES = ("trials-8", "best-trials")
"""With the trials of the own settings; `search-full` has others."""


def begin(own: Recipe, source: RunFolder, target: RunFolder, display: Display) -> None:
    """Give a run that is to search the finished trials of another one, if it has none.

    A copy that is cut short is mended by the search itself: it makes the trials that lack.

    Args:
        own: The recipe of the run whose trials are taken; its search is made if it is not.
        source: That run's folder.
        target: Of the run of the try.
        display: Where progress is shown.

    Raises:
        FusetuneError: As `fusetune search`.
    """
    if target.journal.exists():
        return
    if source.done("search") is None:
        run(own, source.path, stage="search", display=display)
    target.path.mkdir(parents=True, exist_ok=True)
    with storing(), quiet():
        optuna.copy_study(
            from_study_name=SEARCH,
            from_storage=open_existing(source.journal),
            to_storage=open_storage(target.journal),
        )


def with_other_rates(job: Job, runs: Path) -> dict[RunFolder, Recipe]:
    """What trained without a search, with the own rate and others; attempts may be the same."""
    found = {}
    for attempt in ("", *settings.RATES):
        other = replace(job, attempt=attempt)
        (made,) = make_plan(job.recipe_of(attempt), [BASE], job.seed).runs.values()
        found[RunFolder(other.seed_folder(runs) / FIXED)] = made
    return found
