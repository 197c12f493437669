"""From a recipe to a fused model and its report, stage by stage.

Each stage begins with "is my output complete?", so that running again is resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.errors import StageError
from fusetune.members.disk import full_disk_is_an_error, write_text
from fusetune.methods.search import is_study_of_weights
from fusetune.pipeline.checks import check
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.display import Display, log_to
from fusetune.pipeline.environment import (
    changed_data,
    require_same_data,
    write_environment,
)
from fusetune.pipeline.export import export_model
from fusetune.pipeline.fuse import fuse
from fusetune.pipeline.report import report
from fusetune.pipeline.search import search
from fusetune.pipeline.shared import SharedTrainings
from fusetune.pipeline.train import is_of_search, train
from fusetune.recipe import Recipe
from fusetune.run import STAGES, Extension, RunFolder

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
        extend: Where the folder's run has other methods, give it those of the recipe as well;
            what its methods found is kept. More trials, evaluations and methods than before
            extend a run in any case.
        shared: Trainings of other runs, of which none is done again.
        display: Where progress is shown; quiet if None.
        allow_code: Consent to code that the recipe names; remembered for the folder.

    Raises:
        FusetuneError: For everything that a user can cause.
    """
    folder = RunFolder(out)
    display = display or Display(quiet=True)
    with folder.claim(), log_to(folder.log, verbose=display.verbose):
        more = None if force else folder.extension(recipe, join=extend)
        if more is None:
            first = folder.check_recipe(recipe, stage=stage, force=force)
        else:
            recipe, first = more.recipe, None
        context = Context(recipe, folder, display, shared, allow_code=allow_code)
        stages = STAGES if stage is None else (stage,)
        try:
            with full_disk_is_an_error(folder.path):
                if first is not None:
                    folder.drop_damaged(first)  # what starts anew needs no record
                folder.check_records()
                check(context)
                if _same_data(context, first, more, stages):
                    _prepare(context, first, more)
                for name in stages:
                    _run_stage(context, name)
        finally:
            context.close()
    return folder


def _same_data(
    context: Context, first: str | None, more: Extension | None, stages: Sequence[str]
) -> bool:
    """Whether the data are those that the run began with, or the run starts anew.

    Where they are not, but all that was asked for is complete, a warning says so.

    Raises:
        RunError: If stages of the run would be of different data.
    """
    folder = context.folder
    begun = any(folder.record(stage).exists() for stage in STAGES) or context.loop().names()
    changed = changed_data(context) if begun and first != STAGES[0] else ""
    if not changed:
        return True
    finished = all(folder.done(stage) and not folder.lost(stage) for stage in stages)
    if first is not None or more is not None or not finished:
        require_same_data(context)
    context.display.warn(
        f"The data have changed since this run began: {changed}. What is in {folder.path} was "
        "made with the former data; --force starts anew with these."
    )
    return False


def _prepare(context: Context, first: str | None, more: Extension | None) -> None:
    """Forget what is to be done anew, or open what is to go on, and keep the recipe."""
    folder = context.folder
    if first is not None:
        _forget(context, first)
    if more is not None:
        folder.extend(more)
    write_text(folder.recipe_file, context.recipe.to_yaml())
    write_environment(context)


def _forget(context: Context, first: str, *, keep: Collection[Path] = ()) -> None:
    """Forget a stage and all after it. Its record goes last: a kill begins this again."""
    folder, stale = context.folder, STAGES[STAGES.index(first) :]
    folder.reopen(*stale[1:])
    loop = context.loop()
    for study in loop.names():
        if ("search" in stale and study == SEARCH) or (
            "fuse" in stale and is_study_of_weights(study)
        ):
            loop.delete(study)
    folder.reset(first, keep=keep)


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
    if name == "train" and not is_of_search(context):
        context.display.say("train: begun anew, as the search has found another λ")
        _forget(context, "train", keep=(folder.work,))  # where members of full trials may be
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
