"""Optuna's storage in a database, patient while that is away.

A try that failed may have been stored, its answer alone being lost with the connection. So each
operation can be done twice with the effect of once: most are so by themselves; a trial
that was made, told or deleted by an earlier try is found again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fusetune.optimization.patience import Patience

AGAIN = (
    "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs",
    "get_study_system_attrs", "get_all_studies", "_set_trial_param", "get_trial",
    "get_trial_id_from_study_id_trial_number", "_get_best_trial_id", "_get_trials",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr",
)  # fmt: skip
"""Operations of `RDBStorage` that may be done twice as they are. Heartbeats are not among them:
the next one is the second try."""


class PatientDatabase(RDBStorage):
    """A database whose operations are tried again while it is away.

    Args:
        url: As SQLAlchemy takes it.
        patience: How long, and how it is called.
        settings: Further arguments of `RDBStorage`.

    Attributes:
        guard: Called before a trial is made; raises if the lock that its process holds is
            lost. None where there is no lock.
    """

    def __init__(self, url: str, patience: Patience, **settings: Any) -> None:
        self.patience = patience
        self.guard: Callable[[], object] | None = None
        self._made: tuple[int, datetime | None] | None = None
        super().__init__(url, **settings)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """As Optuna's; a study that an earlier try has made is taken."""
        create = super().create_new_study

        def attempt(again: bool) -> int:
            try:
                return create(directions, study_name)
            except DuplicatedStudyError:
                if not again or study_name is None:
                    raise
                return self.get_study_id_from_name(study_name)

        return self.patience(attempt)

    def delete_study(self, study_id: int) -> None:
        """As Optuna's; one that an earlier try has deleted is gone."""
        delete = super().delete_study

        def attempt(again: bool) -> None:
            try:
                delete(study_id)
            except KeyError:
                if not again:
                    raise

        self.patience(attempt)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's; a trial that an earlier try has told is told."""
        tell = super().set_trial_state_values

        def attempt(again: bool) -> bool:
            try:
                return tell(trial_id, state, values)
            except UpdateFinishedTrialError:
                told = self.get_trial(trial_id)
                same = told.state == state and list(told.values or ()) == list(values or ())
                if not (again and same):
                    raise
                return True

        return self.patience(attempt)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        create = super()._create_new_trial
        self._made = None
        return self.patience(lambda again: create(study_id, template_trial))

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> Any:
        """Called by every try, Optuna's own among them, while the study's row is locked."""
        if self.guard is not None:
            self.guard()
        if self._made is not None:
            number, started = self._made
            found = session.get(models.TrialModel, number)
            # An identifier that was rolled back may be another process's by now.
            if found and (found.study_id, found.datetime_start) == (study_id, started):
                return found
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        self._made = (trial.trial_id, trial.datetime_start)
        return trial


def _patient(name: str) -> Callable[..., Any]:
    plain = getattr(RDBStorage, name)

    @functools.wraps(plain)
    def call(self: PatientDatabase, *args: Any, **settings: Any) -> Any:
        return self.patience(lambda again: plain(self, *args, **settings))

    return call


for _name in AGAIN:
    setattr(PatientDatabase, _name, _patient(_name))
