"""Who evaluates which trial, so that none is lost and none is done twice.

A process that is alone with its study owns every trial that is RUNNING when it starts. Where
several share one in a database, each keeps a heartbeat beside its trials; a trial whose heart
has stopped beating belongs to whom first says so, under a lock of the database. All times are
those of the database: the clocks of the machines do not matter.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

import sqlalchemy
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import RunError
from fusetune.optimization.locks import exclusive, patience_of
from fusetune.optimization.patience import is_away
from fusetune.optimization.storage import database

logger = logging.getLogger(__name__)

POLL = 2.0  # seconds between looks at trials of other processes
IDENTITY = "fusetune:recipe"
"""User attribute of a shared study: the digest of what decides about its trials."""

_ORPHANS = """
SELECT t.trial_id FROM trials t LEFT JOIN trial_heartbeats h ON h.trial_id = t.trial_id
WHERE t.study_id = :study AND t.state = 'RUNNING' AND h.trial_id IS NULL
"""


class Claims(Protocol):
    """Hands out the trials of one study to this process; a context while they are evaluated."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def next(self, trials: int) -> Trial | None:
        """A trial that was left RUNNING, else a new one; None if there are `trials` of them."""
        ...

    def tell(self, trial: Trial, tell: Callable[[], FrozenTrial]) -> FrozenTrial | None:
        """Tell a trial; None if another process has done so."""
        ...

    def wait(self) -> bool:
        """Nothing is left to do here; whether to look again, after a while."""
        ...


class Sole(Claims):
    """The claims of a process that is alone with its study."""

    def __init__(self, study: Study) -> None:
        self._study = study
        known = study.get_trials(deepcopy=False)
        running = [t for t in known if t.state == TrialState.RUNNING]
        self._begun = sum(t.state != TrialState.WAITING for t in known)
        self._left = deque(Trial(study, t._trial_id) for t in running)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def next(self, trials: int) -> Trial | None:
        """See `Claims`."""
        if self._left:
            return self._left.popleft()
        if self._begun >= trials:
            return None
        trial = self._study.ask()
        self._begun += 1
        return trial

    def tell(self, trial: Trial, tell: Callable[[], FrozenTrial]) -> FrozenTrial | None:
        """See `Claims`."""
        return tell()

    def wait(self) -> bool:
        """Nobody else has trials to wait for."""
        return False


class Shared(Claims):
    """The claims of one of several processes.

    Args:
        study: In a database whose `heartbeat_interval` is set.

    Raises:
        RunError: If it is kept elsewhere.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._storage = database(study._storage)
        interval = self._storage.get_heartbeat_interval()
        if interval is None:
            raise RunError("A shared study needs a storage with heartbeats.")
        self._interval = interval
        self._patience = patience_of(self._storage)
        self._silence = float("-inf")  # when the database last did not answer
        self._mine: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeats")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def next(self, trials: int) -> Trial | None:
        """See `Claims`: an orphan first, else a new trial, counted under the lock.

        A database that goes away takes the lock with it: then all begins anew, where a trial
        without a heartbeat that an earlier try has made is an orphan.
        """
        claimed: list[Trial | None] = []

        def attempt(again: bool) -> Trial | None:
            if not claimed:  # else only giving the lock back had failed
                try:
                    with exclusive(self._storage, self._study._study_id):
                        claimed.append(self._claim(trials))
                except Exception as error:
                    if is_away(error):
                        self._silence = time.monotonic()
                    raise
            return claimed[0]

        return self._patience(attempt)

    def _claim(self, trials: int) -> Trial | None:
        """The next trial, while the lock is held."""
        study = self._study
        left = [i for i in self._orphans() if i not in self._mine]
        if left:
            trial = Trial(study, left[0])
            logger.info("trial %d is taken over: its process is gone", trial.number)
        else:
            known = study.get_trials(deepcopy=False)
            if sum(t.state != TrialState.WAITING for t in known) >= trials:
                return None
            with warnings.catch_warnings():  # that heartbeats are for study.optimize
                warnings.simplefilter("ignore", UserWarning)
                trial = study.ask()
        self._storage.record_heartbeat(trial._trial_id)
        self._mine.add(trial._trial_id)
        return trial

    def tell(self, trial: Trial, tell: Callable[[], FrozenTrial]) -> FrozenTrial | None:
        """See `Claims`. A trial that was taken over while this process slept stays as it is."""
        try:
            return tell()
        except UpdateFinishedTrialError:
            logger.warning("trial %d was finished by another process", trial.number)
            return None
        finally:
            self._mine.discard(trial._trial_id)

    def wait(self) -> bool:
        """Whether others are still evaluating: they may die, and leave their trials."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if running:
            time.sleep(POLL)
        return bool(running)

    def _orphans(self) -> list[int]:
        """Trials whose process is gone, oldest first.

        Those without a heartbeat among them: a process that asks holds the lock until its
        first one, so that theirs died in between. No heart could beat while the database was
        away: soon after that a silent one proves nothing.
        """
        study = self._study._study_id
        with self._storage.engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(_ORPHANS), {"study": study})
            never = [int(row[0]) for row in rows]
        if time.monotonic() - self._silence < 2 * self._interval:
            return sorted(never)
        return sorted({*never, *self._storage._get_stale_trial_ids(study)})

    def _beat(self) -> None:
        while not self._stop.wait(self._interval):
            for trial in list(self._mine):
                try:
                    self._storage.record_heartbeat(trial)
                except Exception as error:  # the next one may get through
                    self._silence = time.monotonic()
                    logger.warning("no heartbeat: %s", str(error).splitlines()[0])


def require_same(study: Study, identity: str) -> None:
    """Let a shared study be worked on by one recipe alone.

    Raises:
        RunError: If it was begun with another one.
    """

    def attempt(again: bool) -> str:
        with exclusive(study._storage, study._study_id):
            begun: str | None = study.user_attrs.get(IDENTITY)
            if begun is None:
                study.set_user_attr(IDENTITY, identity)
            return begun or identity

    begun = patience_of(database(study._storage))(attempt)
    if begun != identity:
        raise RunError(
            f"Study {study.study_name!r} was begun with another recipe: seed, task, model, "
            "search or training differ.",
            "Take the same recipe, or another name for the study.",
        )
