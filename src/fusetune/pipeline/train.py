"""Stage 2: full trainings with the λ found; their checkpoints are the members."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fusetune.errors import NoResultError, StageError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.executors.group import current
from fusetune.files.record import read_record, shaped
from fusetune.members.disk import write_json
from fusetune.members.weights import FusionWeights
from fusetune.pipeline import existing
from fusetune.pipeline.attempts import Attempts, judged_from
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.display import Bar
from fusetune.pipeline.kept import KeptTrials
from fusetune.pipeline.together import lockstep, together
from fusetune.pipeline.trajectories import FirstModel, Trajectory, plan, require_same_start
from fusetune.pipeline.workbench import Workbench, open_pool
from fusetune.run import Trained
from fusetune.training.collect import MemberCollector, first_from, member_name
from fusetune.training.trajectory import train as train_trajectory
from fusetune.training.watch import DivergedError, MemberWatch, ProgressReporter

Judge = Callable[[int, Evaluation], bool]
"""(step, evaluation) of a member → whether the training is given up."""


def is_of_search(context: Context) -> bool:
    """Whether the stage's record, if there is one, is of what the search has found.

    It is not where more trials of the search have found a better λ since.
    """
    folder = context.folder
    record, found = folder.recorded("train"), folder.recorded("search")
    if record is None or found is None or context.recipe.train.checkpoints is not None:
        return True
    trajectories = record.get("trajectories", ())
    if not all("trial" in trajectory for trajectory in trajectories):
        return True
    trained = [trajectory["trial"] for trajectory in trajectories]
    return not trained or trained == [each.trial for each in _planned(context, found)]


def _planned(context: Context, found: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories to train, given the record of the search."""
    recipe = context.recipe
    trials = context.trials(SEARCH) if recipe.train.trajectories.source == "trials" else []
    return plan(recipe, found, trials, context.task.objectives[1])


def train(context: Context) -> dict[str, Any]:
    """Train in full and collect the members; returns the stage's record.

    With `train.checkpoints` nothing is trained: the record says where the members are. A
    trajectory that the search has trained already is taken over from it.

    Raises:
        NoResultError: If the training diverges.
        StageError: If the search is not complete, or the trajectories do not fit together.
    """
    folder, recipe = context.folder, context.recipe
    if recipe.train.checkpoints is not None:
        record = existing.record(context)
        folder.finish("train", record)
        context.display.say(f"train: {len(record['members'])} checkpoints that exist already")
        return record
    found = folder.recorded("search")
    if found is None:
        raise StageError(
            f"{folder.path} has no finished search.",
            "Run `fusetune search` first, or everything with `fusetune run`.",
        )
    planned = _planned(context, found)
    done: list[dict[str, Any]] = []
    with context.display.bar("train", 1) as bar:
        for trajectory in planned:
            if done and recipe.train.trajectories.source == "seeds":  # the λ that held
                trajectory = replace(trajectory, params=done[0]["params"])
            done.append(_trajectory(context, trajectory, len(planned), bar))
    require_same_start([record["start"] for record in done])
    record = {
        "params": done[0]["params"],
        "steps": done[0]["steps"],
        "members": [name for record in done for name in record["members"]],
        "seconds": sum(record["seconds"] for record in done),
        "trainings": sum(
            not record["from_search"] and max(1, len(record["attempts"])) for record in done
        ),
        "evaluations": sum(len(record["attempts"]) for record in done),
        "trajectories": done,
    }
    folder.finish("train", record)
    shutil.rmtree(folder.work, ignore_errors=True)
    return record


def _trajectory(
    context: Context, trajectory: Trajectory, count: int, bar: Bar
) -> dict[str, Any]:
    """One trajectory's record; a file beside its checkpoints keeps it until the stage ends."""
    path = context.folder.work / f"{trajectory.folder}.json"
    stored = read_record(path, shaped(Trained))
    if stored is not None:
        return stored
    attempts = Attempts(context, trajectory)
    record = _taken_over(context, trajectory) or _attempted(context, attempts, count, bar)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    attempts.clear()
    return record


def _attempted(context: Context, attempts: Attempts, count: int, bar: Bar) -> dict[str, Any]:
    """The record of the attempt that was trained to its end."""
    started, handed_on = time.perf_counter(), 0.0
    while True:
        number, judge = attempts.settled, None
        if number is None:
            number, judge = len(attempts.judged), attempts.judge
        elif attempts.judged:
            attempts.restore(number)
        trajectory, folder = attempts.trajectory_of(number), attempts.folder_of(number)
        shared = _shared(context, trajectory, judge)
        if shared is not None:
            record, seconds = shared
            handed_on += seconds
        else:
            work = functools.partial(_trained, context, trajectory, count, bar, folder, judge)
            try:
                record = together(
                    context, work, _train_along, trajectory, folder.name, judge is not None
                )
            except NoResultError:
                unjudged = judge is not None and len(attempts.judged) == number
                if current() is not None or not unjudged or not attempts.diverged():
                    raise
                continue
        if record is not None:
            seconds = time.perf_counter() - started + handed_on
            return {**record, "seconds": seconds, "attempts": attempts.record}


def _taken_over(context: Context, trajectory: Trajectory) -> dict[str, Any] | None:
    """The members that the search kept, if it kept those of this trajectory."""
    started = time.perf_counter()
    number, recipe = trajectory.trial, context.recipe
    kept = KeptTrials(context.folder.kept)
    trial = kept.find(number) if number is not None and recipe.trains_in_trials else None
    if trial is None or number is None:
        return None
    fits = trial.params == trajectory.params and trajectory.seed == recipe.seed
    if not fits or not kept.take(number, context.folder.members, trajectory.number):
        return None
    context.display.say(f"train: taken over from trial {number} of the search")
    return _record(trajectory, trial.steps, trial.members, trial.start, started, True)


def _shared(
    context: Context, trajectory: Trajectory, judge: Judge | None
) -> tuple[dict[str, Any] | None, float] | None:
    """The members of another run of the comparison that trained this λ, if there are any.

    With its record, None if it is given up, and the seconds that the other run spent on it.
    """
    if context.shared is None or trajectory.number is not None:
        return None
    started, members = time.perf_counter(), context.folder.members
    found = context.shared.find(context.recipe, trajectory.params, members)
    if found is None:
        return None
    trial = found.trial
    if judge is not None:
        number = first_from(trial.members, judged_from(context.recipe), trial.steps)
        bench = Workbench(open_pool(context, members), context, None)
        member = FusionWeights.one_hot(number, len(bench.pool))
        step = trial.members[number]
        if judge(step, bench.evaluator("validation")(member)):
            return None, found.seconds * step / trial.steps
    context.display.say("train: taken over from another run of the comparison")
    record = _record(trajectory, trial.steps, trial.members, trial.start, started, False)
    return record, found.seconds


def _train_along(context: Context, trajectory: Trajectory, folder: str, judged: bool) -> None:
    """Of a group's other processes: their part of a training."""
    judge: Judge | None = (lambda *_: False) if judged else None
    _trained(context, trajectory, 1, Bar(None, None), context.folder.work / folder, judge)


def _trained(
    context: Context,
    trajectory: Trajectory,
    count: int,
    bar: Bar,
    folder: Path,
    judge: Judge | None,
) -> dict[str, Any] | None:
    """The record of a training; None if it is given up."""
    started = time.perf_counter()
    recipe = context.recipe
    collector = MemberCollector(
        context.folder.members,
        recipe.train.members_each,
        recipe.train.collect_from,
        context.tokenizer,
        trajectory.number,
    )
    before = (trajectory.number or 1) - 1

    def show(step: int, total: int) -> None:
        kept = before * recipe.train.members_each + sum(s <= step for s in collector.steps)
        bar.update(
            before * total + step, count * total, f"{kept} of {recipe.train.members} members"
        )

    callbacks: list[TrainerCallback] = [collector, ProgressReporter(show)]
    watch = _watch(context, collector, judge)
    callbacks += [watch] if watch is not None else []
    first = FirstModel(context.model_maker(), recipe)
    try:
        steps = train_trajectory(
            first,
            context.train_data,
            context.collate,
            folder,
            context.training_arguments(dict(trajectory.params), trajectory.folder),
            epochs=recipe.train.epochs,
            seed=trajectory.seed,
            head_seed=recipe.seed,
            device=context.device.type,
            precision=context.precision,
            callbacks=callbacks,
            logs=context.folder.logs / trajectory.folder,
        )
    except DivergedError as error:
        raise NoResultError(
            f"The full training diverged: {error}.",
            "Lower search.space.learning_rate.high, or train.arguments.learning_rate.",
        ) from error
    if watch is not None and watch.stopped:
        return None
    return _record(trajectory, steps, collector.steps, first.digest, started, False)


def _watch(
    context: Context, collector: MemberCollector, judge: Judge | None
) -> MemberWatch | None:
    """Shows a member to the judge, in every process of a group."""
    if judge is None:
        return None
    group, start = current(), judged_from(context.recipe)
    tell = judge if group is None else lambda *check: group.same(judge(*check))
    return MemberWatch(lockstep(context.scorer("validation")), collector, start, tell)


def _record(
    trajectory: Trajectory,
    steps: int,
    members: Sequence[int],
    start: str | None,
    started: float,
    from_search: bool,
) -> dict[str, Any]:
    return {
        "params": dict(trajectory.params),
        "seed": trajectory.seed,
        "trial": trajectory.trial,
        "from_search": from_search,
        "steps": steps,
        "members": [member_name(step, trajectory.number) for step in members],
        "start": start,
        "seconds": time.perf_counter() - started,
        "attempts": [],
    }
