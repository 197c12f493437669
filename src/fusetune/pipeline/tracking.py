"""The trials of a search over w, reported to where the recipe's Trainer reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.trial import FrozenTrial, TrialState
from transformers import TrainingArguments

from fusetune.errors import FusetuneError
from fusetune.members import points
from fusetune.members.layers import LayerWeights, group_names
from fusetune.members.weights import FusionWeights
from fusetune.pipeline.context import Context
from fusetune.pipeline.workbench import Workbench
from fusetune.training.arguments import build
from fusetune.training.tracking import Tracker, reporting_callbacks

OnTrial = Callable[[optuna.Study, FrozenTrial], None]


def settings_of(context: Context, part: str) -> TrainingArguments:
    """The recipe's training arguments; `part` makes the name of the run that is reported."""
    return build(
        context.folder.work,
        context.training_arguments(part=part),
        epochs=context.recipe.train.epochs,
        seed=context.recipe.seed,
        device=context.device.type,
        precision=context.precision,
    )


def check(context: Context) -> None:
    """Find what is wrong with `report_to` before any long work starts.

    Raises:
        RecipeError: If an integration is unknown or not installed.
    """
    reporting_callbacks(settings_of(context, "check"))


@contextmanager
def following(context: Context, bench: Workbench, method: str) -> Iterator[OnTrial]:
    """What reports each trial of a method: its values and weights; nothing without `report_to`.

    A report that fails ends the reporting, with a note, and not the run.
    """
    settings = settings_of(context, f"fuse-{method}")
    if not settings.report_to:
        yield lambda study, trial: None
        return
    folder = context.folder.logs / f"fuse-{method}"
    tracker: Tracker | None = None
    failed = False
    names = [objective.name for objective in context.task.objectives]

    def guarded(action: Callable[[], None]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            action()
        except FusetuneError:
            raise
        except Exception as error:  # of somebody else's service
            failed = True
            context.note(f"{method} is no longer reported: {type(error).__name__}: {error}")

    def log(study: optuna.Study, trial: FrozenTrial) -> None:
        def send() -> None:
            nonlocal tracker
            if tracker is None:
                tracker = Tracker(settings, folder, bench.average.model)
            values = dict(zip(names, trial.values, strict=True))
            tracker.log(
                trial.number,
                {f"fuse/{method}/{name}": float(value) for name, value in values.items()}
                | _weights(f"weight/{method}", trial, bench.pool.names),
            )

        if trial.state == TrialState.COMPLETE:
            guarded(send)

    try:
        yield log
    finally:
        if tracker is not None:
            guarded(tracker.close)


def _weights(prefix: str, trial: FrozenTrial, members: Sequence[str]) -> dict[str, float]:
    """The weight of every member, for each group of layers where they have one each."""
    point = points.from_json(trial.user_attrs)
    if isinstance(point, LayerWeights):
        parts = zip(group_names(point.parts), point.groups, strict=True)
        return {
            f"{prefix}/{part}/{name}": weight
            for part, w in parts
            for name, weight in zip(members, w.values, strict=True)
        }
    assert isinstance(point, FusionWeights)  # all that is searched
    pairs = zip(members, point.values, strict=True)
    return {f"{prefix}/{name}": weight for name, weight in pairs}
