"""The trainings that are begun with the λ of a light or short trial and with lower rates.

A short trial with frozen layers bears a larger step than the training of the whole model: the
search may find a learning rate at which that training breaks down, as post-norm models do all
of a sudden [Mosbach2021]. It shows as soon as members are kept: so the training is begun with a
lower learning rate too, and the two are compared there (`halving`).

Whatever is decided is written down before the training goes on, so that a run that is killed
decides nothing twice.

.. [Mosbach2021] M. Mosbach, M. Andriushchenko, D. Klakow. On the stability of fine-tuning BERT:
   misconceptions, explanations, and strong baselines. ICLR 2021.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.bootstrap import LEVEL, bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.files.record import mapping, read_record
from fusetune.members.disk import write_json
from fusetune.objective import Objective
from fusetune.pipeline import halving
from fusetune.pipeline.best_trial import RATE
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.halving import Attempt
from fusetune.pipeline.space import distributions
from fusetune.pipeline.starts import own
from fusetune.pipeline.trajectories import Trajectory
from fusetune.recipe import Recipe
from fusetune.run import AttemptShape
from fusetune.training.collect import member_name

USUAL = 5e-5
"""The learning rate of `transformers.TrainingArguments`, where a recipe names none."""


def promised(context: Context, trajectory: Trajectory) -> float | None:
    """The primary metric of the best checkpoint of the trial that found λ.

    None where a full training has nothing to keep: λ is of no trial, or the trial was a full
    training itself, or λ is the recipe's own, which it trains with in any case; and where the
    recipe allows no other attempt.
    """
    recipe = context.recipe
    if not _searched_otherwise(recipe, trajectory):
        return None
    if trajectory.params == own(recipe, distributions(recipe)):
        return None
    for trial in context.trials(SEARCH):
        value = trial.user_attrs.get("best_member", trial.value)
        if trial.number == trajectory.trial and value is not None:
            return float(value)
    return None


def _searched_otherwise(recipe: Recipe, trajectory: Trajectory) -> bool:
    """Whether λ is of a trial that was no full training, and other attempts are allowed."""
    found = trajectory.trial is not None and not recipe.trains_in_trials
    return found and recipe.train.retries > 0


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
        self.compares = _searched_otherwise(context.recipe, trajectory)
        self._file = context.folder.work / f"{trajectory.folder}-attempts.json"
        self.judged = read_record(self._file, _attempts) or []

    @property
    def settled(self) -> int | None:
        """Which attempt is to be trained to its end; None while one has yet to be judged.

        It is the first where λ is of a full training, or no other attempt is allowed.
        """
        if not self.compares:
            return 0
        return halving.settled(self.judged, self._sign, self.context.recipe.train.retries)

    @property
    def record(self) -> list[dict[str, Any]]:
        """The attempts, as the record of the stage has them."""
        return [{k: v for k, v in asdict(a).items() if k != "samples"} for a in self.judged]

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
        """Judge the current attempt by a member; whether it ends there, for now or for good.

        It does not keep the promise where the interval of the member's value, 95 %, lies on
        the worse side of it.

        Args:
            step: After which that member was kept.
            evaluation: Of it, on validation.
        """
        number, value = len(self.judged), evaluation.values[self._primary.name]
        samples = self._samples(evaluation)
        attempt = Attempt(
            self._rate(self.trajectory_of(number).params),
            value if math.isfinite(value) else None,
            self.promise,
            self.promise is None or self._reaches(value, samples, self.promise),
            tuple(map(float, samples)) if np.isfinite(samples).all() else (),
        )
        judged, retries = [*self.judged, attempt], self.context.recipe.train.retries
        ends = halving.settled(judged, self._sign, retries) != number
        if ends:
            self._set_aside(number)
        self._add(attempt)
        return ends

    def diverged(self) -> bool:
        """Judge the current attempt, whose loss is no number; whether another one follows."""
        rate = self._rate(self.trajectory_of(len(self.judged)).params)
        self._add(Attempt(rate, None, self.promise, False))
        return self.settled is None or self.judged[self.settled].value is not None

    def _add(self, attempt: Attempt) -> None:
        self.judged.append(attempt)
        self.context.display.say(f"train: {self._told(attempt)}")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"attempts": [asdict(each) for each in self.judged]})

    def _told(self, attempt: Attempt) -> str:
        if not attempt.kept and attempt.promised is not None:
            return (
                f"given up, as it {attempt.text}, where the search's trial had reached "
                f"{attempt.promised:.4f}"
            )
        number = self.settled
        then = "half of it is next"
        if number is not None:
            then = f"{self.judged[number].learning_rate:.4g} goes on"
        return f"{attempt.text}; {then}"

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

    @property
    def _primary(self) -> Objective:
        return self.context.task.objectives[1]

    @property
    def _sign(self) -> float:
        return self._primary.sign

    def _samples(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """The primary metric on bootstrap samples, the same ones for every attempt."""
        if evaluation.outputs is None:
            return np.empty(0)
        labels = self.context.scorer("validation").encoded.labels
        counts = bootstrap_counts(len(labels))
        return self.context.task.resample(evaluation.outputs, labels, counts)[
            self._primary.name
        ]

    def _reaches(self, value: float, samples: NDArray[np.float64], promise: float) -> bool:
        """Whether the promise is not on the better side of the value's interval."""
        if self._sign * value >= self._sign * promise:
            return True
        if not len(samples):
            return False
        tail = 50 * (1 - LEVEL)
        best = np.percentile(samples, 100 - tail if self._sign > 0 else tail)
        return bool(self._sign * best >= self._sign * promise)

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


def _attempts(content: Any) -> list[Attempt]:
    """The attempts of a record."""
    stored = [AttemptShape.model_validate(entry) for entry in mapping(content)["attempts"]]
    return [
        Attempt(a.learning_rate, a.value, a.promised, a.kept, tuple(a.samples)) for a in stored
    ]
