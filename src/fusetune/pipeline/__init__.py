"""From a recipe to a fused model and its report, stage by stage.

Each stage begins with "is my output complete?", so that running again is resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusetune.errors import StageError
from fusetune.members.disk import full_disk_is_an_error, write_json, write_text
from fusetune.methods.search import is_study_of_weights
from fusetune.pipeline.checks import check
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.display import Display, log_to
from fusetune.pipeline.environment import environment
from fusetune.pipeline.export import export_model
from fusetune.pipeline.fuse import fuse
from fusetune.pipeline.report import report
from fusetune.pipeline.search import search
from fusetune.pipeline.shared import SharedTrainings
from fusetune.pipeline.train import train
from fusetune.recipe import Recipe
from fusetune.run import STAGES, RunFolder

__all__ = ["STAGE_FUNCTIONS", "export_model", "run"]

STAGE_FUNCTIONS: Mapping[str, Callable[[Context], dict[str, Any]]] = {
    "search": search,
    "train": train,
    "fuse": fuse,
    "report": report,
}


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    stage: str | None = None,
    force: bool = False,
    extend: bool = False,
    shared: SharedTrainings | None = None,
    display: Display | None = None,
    allow_code: bool = False,
) -> RunFolder:
    """Run all stages, or one; what is complete is not done again.

    Args:
        recipe: Validated.
        out: The run folder.
        stage: The one stage to run; None for all.
        force: Start the stage (or, for all, the first that the recipe's changes concern)
            anew.
        extend: Where the folder's run differs in its methods alone, give it those of the
            recipe as well; what its methods found is kept.
        shared: Trainings of other runs, of which none is done again.
        display: Where progress is shown; quiet if None.
        allow_code: Consent to code that the recipe names; remembered for the folder.

    Raises:
        FusetuneError: For everything that a user can cause.
    """
    folder = RunFolder(out)
    display = display or Display(quiet=True)
    with folder.claim(), log_to(folder.log, verbose=display.verbose):
        if extend and not force:
            recipe = folder.join_methods(recipe)
        first = folder.check_recipe(recipe, stage=stage, force=force)
        context = Context(recipe, folder, display, shared, allow_code=allow_code)
        try:
            with full_disk_is_an_error(folder.path):
                _prepare(context, first)
                for name in STAGES if stage is None else (stage,):
                    _run_stage(context, name)
        finally:
            context.close()
    return folder


def _prepare(context: Context, first: str | None) -> None:
    """Check everything that can be checked, then forget what is to be done anew."""
    folder = context.folder
    if first is not None:
        folder.drop_damaged(first)  # what starts anew needs no record, and stops no check
    folder.check_records()
    check(context)
    if first is not None:
        stale = STAGES[STAGES.index(first) :]
        folder.reset(first)
        loop = context.loop()
        for study in loop.names():
            if ("search" in stale and study == SEARCH) or (
                "fuse" in stale and is_study_of_weights(study)
            ):
                loop.delete(study)
    write_text(folder.recipe_file, context.recipe.to_yaml())
    write_json(folder.path / "environment.json", environment(context))


def _run_stage(context: Context, name: str) -> None:
    folder, place = context.folder, STAGES.index(name)
    for stage in STAGES[:place]:
        if folder.done(stage) is None:
            problem = f"{folder.path} has not finished the stage {stage}"
        elif lost := folder.lost(stage):
            problem = f"{lost[0]} is gone, which the stage {stage} wrote"
        else:
            continue
        raise StageError(
            f"{problem}, and {stage} comes before {name}.",
            f"Run `fusetune {stage}` first, or everything with `fusetune run`.",
        )
    if folder.done(name) is not None:
        lost = folder.lost(name)
        if not lost:
            context.display.say(f"{name}: complete, nothing to do")
            return
        gone = " and ".join(path.name for path in lost)
        context.display.say(f"{name}: complete, but without {gone}; written again")
        folder.reopen(*STAGES[place + 1 :])  # they add to what is written, or show it
    STAGE_FUNCTIONS[name](context)
    context.release()  # the next stage may need the devices
