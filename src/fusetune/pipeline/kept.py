"""What full-model trials of the search trained, kept until the training takes it over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from fusetune.files.record import Shape, read_record
from fusetune.members.disk import write_json
from fusetune.members.manifest import MANIFEST, assign_trajectory
from fusetune.objective import Objective
from fusetune.pipeline.best_trial import best_trials
from fusetune.training.collect import member_name

RECORD = "trial.json"


@dataclass(frozen=True, slots=True)
class KeptTrial:
    """The record of a trial whose members are kept.

    Attributes:
        params: λ.
        members: Steps of the members, in order.
        steps: Optimiser steps of the whole training.
        start: Digest of the model before its first step; None where it was not asked for.
    """

    params: Mapping[str, Any]
    members: tuple[int, ...]
    steps: int
    start: str | None = None

    @classmethod
    def from_json(cls, content: Any) -> KeptTrial:
        """The inverse of `asdict`, of a record.

        Raises:
            ValueError: If it has another shape.
        """
        known = _Kept.model_validate(content)
        return cls(known.params, tuple(known.members), known.steps, known.start)


class _Kept(Shape):
    """trial.json."""

    params: dict[str, Any]
    members: list[int]
    steps: int
    start: str | None = None


class KeptTrials:
    """A folder with one sub-folder per kept trial; the trials are told apart by number.

    Args:
        folder: Made when the first trial is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, number: int, source: Path, trial: KeptTrial) -> None:
        """Move a trial's folder, whose `members/` is complete, in here, in one step."""
        write_json(source / RECORD, asdict(trial))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.drop(number)
        os.replace(source, self._of(number))

    def drop(self, number: int) -> None:
        """Forget a trial, as one that is to run again."""
        shutil.rmtree(self._of(number), ignore_errors=True)

    def prune(self, trials: Sequence[FrozenTrial], objective: Objective, count: int) -> None:
        """Forget the finished trials that are not among the best `count`."""
        best = {trial.number for trial in best_trials(trials, objective, count)}
        for trial in trials:
            if trial.state.is_finished() and trial.number not in best:
                self.drop(trial.number)

    def find(self, number: int) -> KeptTrial | None:
        """The record of a kept trial."""
        return read_record(self._of(number) / RECORD, KeptTrial.from_json)

    def take(self, number: int, folder: Path, trajectory: int | None) -> bool:
        """Move a kept trial's members into `folder`; whether all of them are there.

        One after the other, each in one step: a call that was cut off is continued.
        """
        trial = self.find(number)
        if trial is None:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for step in trial.members:
            target = folder / member_name(step, trajectory)
            if (target / MANIFEST).is_file():
                continue
            source = self._of(number) / "members" / member_name(step)
            if not (source / MANIFEST).is_file():
                return False
            assign_trajectory(source, trajectory)
            os.replace(source, target)
        return True

    def _of(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"
