"""Whether a full training keeps what the search's trial promised, and what comes next if not.

A short trial with frozen layers bears a larger step than the training of the whole model: the
search may find a learning rate at which that training breaks down, as post-norm models do all
of a sudden [Mosbach2021]. It shows as soon as members are kept: such a training is given up
there, and begun again with a lower learning rate.

Whatever is decided is written down before the training goes on, so that a run that is killed
decides nothing twice.

.. [Mosbach2021] M. Mosbach, M. Andriushchenko, D. Klakow. On the stability of fine-tuning BERT:
   misconceptions, explanations, and strong baselines. ICLR 2021.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fusetune.evaluation.bootstrap import bootstrap_counts, intervals
from fusetune.evaluation.evaluation import Evaluation
from fusetune.members.disk import write_json
from fusetune.pipeline.best_trial import RATE
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.space import distributions
from fusetune.pipeline.starts import own
from fusetune.pipeline.trajectories import Trajectory
from fusetune.recipe import Recipe
from fusetune.training.collect import member_name

USUAL = 5e-5
"""The learning rate of `transformers.TrainingArguments`, where a recipe names none."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A full training as far as the member by which it is judged.

    Attributes:
        learning_rate: Its own.
        value: Of the primary metric on validation; None if it diverged before.
        promised: What the search's trial had reached.
        kept: Whether it goes on.
    """

    learning_rate: float
    value: float | None
    promised: float
    kept: bool

    @property
    def text(self) -> str:
        """What became of it."""
        reached = "diverged" if self.value is None else f"reached {self.value:.4f}"
        return f"{reached} with the learning rate {self.learning_rate:.4g}"


def promised(context: Context, trajectory: Trajectory) -> float | None:
    """The primary metric of the best checkpoint of the trial that found λ.

    None where a full training has nothing to keep: λ is of no trial, or the trial was a full
    training itself, or λ is the recipe's own, which it trains with in any case; and where the
    recipe allows no other attempt.
    """
    recipe = context.recipe
    if trajectory.trial is None or recipe.trains_in_trials or not recipe.train.retries:
        return None
    if trajectory.params == own(recipe, distributions(recipe)):
        return None
    for trial in context.trials(SEARCH):
        value = trial.user_attrs.get("best_member", trial.value)
        if trial.number == trajectory.trial and value is not None:
            return float(value)
    return None


def judged_from(recipe: Recipe) -> float:
    """Share of a full training after which it has seen as much as a trial of the search."""
    return min(1.0, (recipe.search.epochs or recipe.train.epochs) / recipe.train.epochs)


class Attempts:
    """The attempts at one trajectory, in a file beside their checkpoints.

    Args:
        context: Of the run.
        trajectory: As the search found it.
    """

    def __init__(self, context: Context, trajectory: Trajectory) -> None:
        self.context = context
        self.trajectory = trajectory
        self.promise = promised(context, trajectory)
        self._file = context.folder.work / f"{trajectory.folder}-attempts.json"
        self.judged: list[Attempt] = []
        if self._file.is_file():
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            self.judged = [Attempt(**entry) for entry in stored["attempts"]]

    @property
    def settled(self) -> int | None:
        """Which attempt is to be trained to its end; None while one has yet to be judged.

        The first that keeps the promise; when there are to be no more, the best, and of equal
        ones the first.
        """
        if self.promise is None:
            return 0
        for number, attempt in enumerate(self.judged):
            if attempt.kept:
                return number
        if len(self.judged) <= self.context.recipe.train.retries:
            return None
        sign = self.context.task.objectives[1].sign
        values = [-math.inf if a.value is None else sign * a.value for a in self.judged]
        return values.index(max(values))

    def trajectory_of(self, number: int) -> Trajectory:
        """What an attempt trains: λ as it was found, then with ever lower learning rates.

        The second has half the rate, or the one that the recipe names where that is lower; each
        further one has half of the last.
        """
        if number == 0:
            return self.trajectory
        found = self.trajectory.params
        own = self.context.recipe.train.arguments.get(RATE)
        least = math.inf if own is None else float(own)
        rate = min(least, self._rate(found) / 2) / 2 ** (number - 1)
        return replace(self.trajectory, params={**found, RATE: rate})

    def folder_of(self, number: int) -> Path:
        """Where the Trainer keeps the checkpoints of an attempt."""
        name = self.trajectory.folder + (f"-attempt-{number + 1}" if number else "")
        return self.context.folder.work / name

    def judge(self, step: int, evaluation: Evaluation) -> bool:
        """Judge the current attempt by a member; whether it is given up.

        It is where the interval of the member's value, 95 %, lies on the worse side of the
        promise.

        Args:
            step: After which that member was kept.
            evaluation: Of it, on validation.
        """
        assert self.promise is not None
        primary = self.context.task.objectives[1]
        value = evaluation.values[primary.name]
        kept = self._reaches(evaluation, self.promise)
        if not kept:
            self._set_aside(len(self.judged))
        self._add(value if math.isfinite(value) else None, kept)
        return not kept

    def diverged(self) -> bool:
        """Judge the current attempt, whose loss is no number; whether another one follows."""
        self._add(None, False)
        return self.settled is None or self.judged[self.settled].value is not None

    def _add(self, value: float | None, kept: bool) -> None:
        assert self.promise is not None
        rate = self._rate(self.trajectory_of(len(self.judged)).params)
        self.judged.append(Attempt(rate, value, self.promise, kept))
        if not kept:
            self.context.display.say(
                f"train: given up, as it {self.judged[-1].text}, where the search's trial had "
                f"reached {self.promise:.4f}"
            )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"attempts": [asdict(attempt) for attempt in self.judged]})

    def restore(self, number: int) -> None:
        """Put the members of an attempt that was given up back in their place."""
        aside = self._aside(number)
        for path in sorted(aside.iterdir()) if aside.is_dir() else ():
            target = self.context.folder.members / path.name
            shutil.rmtree(target, ignore_errors=True)  # of another attempt
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)

    def clear(self) -> None:
        """Remove the checkpoints of all attempts, large ones, and the file."""
        for number in range(max(1, len(self.judged))):
            shutil.rmtree(self.folder_of(number), ignore_errors=True)
            shutil.rmtree(self._aside(number), ignore_errors=True)
        self._file.unlink(missing_ok=True)

    def _reaches(self, evaluation: Evaluation, promise: float) -> bool:
        primary = self.context.task.objectives[1]
        value = evaluation.values[primary.name]
        if primary.sign * value >= primary.sign * promise:
            return True
        if evaluation.outputs is None:
            return False
        labels = self.context.scorer("validation").encoded.labels
        counts = bootstrap_counts(len(labels))
        task = self.context.task
        found = intervals(
            {primary.name: value}, evaluation.outputs, labels, task.resample, counts
        )[primary.name]
        best = found.high if primary.sign > 0 else found.low
        return primary.sign * best >= primary.sign * promise

    def _set_aside(self, number: int) -> None:
        """Keep the attempt's members where the next attempt does not remove them."""
        aside = self._aside(number)
        aside.mkdir(parents=True, exist_ok=True)
        own = member_name(0, self.trajectory.number).rstrip("0")
        for source in self.context.folder.members.glob(f"{own}*"):
            shutil.rmtree(aside / source.name, ignore_errors=True)
            os.replace(source, aside / source.name)

    def _aside(self, number: int) -> Path:
        return self.context.folder.work / f"{self.folder_of(number).name}-members"

    def _rate(self, params: Mapping[str, Any]) -> float:
        rate = self.context.training_arguments(dict(params)).get(RATE)
        return USUAL if rate is None else float(rate)
