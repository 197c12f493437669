"""How long a storage may be away, and which errors say that it is."""

from __future__ import annotations

import errno
import sqlite3

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, ProgrammingError

from fusetune.errors import RunError
from fusetune.optimization import patience
from fusetune.optimization.patience import PATIENCE, VARIABLE, Patience, is_away
from fusetune.optimization.storage import database, open_storage, quiet


class Clock:
    """A time in which sleeping costs none."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def sqlite_error(code: int, text: str = "…") -> OperationalError:
    cause = sqlite3.OperationalError(text)
    cause.sqlite_errorcode = code
    return OperationalError("SELECT 1", {}, cause)


class PostgresError(Exception):
    sqlstate: str | None = None

    def __init__(self, text: str, state: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = state


PostgresError.__name__ = "OperationalError"


def postgres_error(text: str, state: str | None = None) -> OperationalError:
    return OperationalError("SELECT 1", {}, PostgresError(text, state))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "…"), True),
        (OSError(errno.ESTALE, "…"), True),
        (OSError(errno.ENOSPC, "…"), False),
        (OSError(errno.EDQUOT, "…"), False),
        (OSError(errno.EROFS, "…"), False),
        (FileNotFoundError(errno.ENOENT, "…"), False),
        (PermissionError(errno.EACCES, "…"), False),
        (sqlite_error(5, "database is locked"), True),
        (sqlite_error(10 | 4 << 8, "disk I/O error"), True),  # extended codes too
        (sqlite_error(13, "database or disk is full"), False),
        (sqlite_error(8, "attempt to write a readonly database"), False),
        (sqlite_error(1, "no such table: trials"), False),
        (postgres_error("…", "08006"), True),
        (postgres_error("…", "57P01"), True),
        (postgres_error("…", "53100"), False),  # the server's disk is full
        (postgres_error("…", "42501"), False),  # rights
        (postgres_error("connection refused"), True),
        (postgres_error("FATAL:  the database system is starting up"), True),
        (postgres_error("FATAL:  password authentication failed"), False),
        (postgres_error('FATAL:  database "x" does not exist'), False),
        (ProgrammingError("…", {}, Exception("no such column")), False),
        (OperationalError("…", {}, Exception("gone"), connection_invalidated=True), True),
        (ValueError("…"), False),
    ],
)  # fmt: skip
def test_which_errors_mean_away(error: Exception, expected: bool) -> None:
    assert is_away(error) is expected
    wrapped = StorageInternalError("data too long")
    wrapped.__cause__ = error
    assert is_away(wrapped) is expected


def test_waits_grow_up_to_the_limit_and_not_beyond(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    wait = Patience("the storage")

    def away(again: bool) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        wait(away)
    assert sum(clock.slept) == PATIENCE
    assert clock.slept[:5] == [0.5, 0.5, 1.0, 2.0, 4.0]
    assert max(clock.slept) == 15.0
    assert len(caplog.messages) == 1
    with pytest.raises(OSError, match="Stale"):  # what cleans up does not wait once more
        wait(away)
    assert sum(clock.slept) == PATIENCE
    assert wait(lambda again: 7) == 7
    assert "answers again" in caplog.messages[-1]


def test_the_whole_is_tried_again_not_its_parts(clock: Clock) -> None:
    wait, seen = Patience("the storage"), []

    def part(again: bool) -> str:
        seen.append("part")
        if seen.count("part") < 3:
            raise OSError(errno.EIO, "…")
        return "done"

    def whole(again: bool) -> str:
        seen.append(f"whole {again}")
        return wait(part)

    assert wait(whole) == "done"
    assert seen == ["whole False", "part", "whole True", "part", "whole True", "part"]


def test_other_errors_are_told_at_once(clock: Clock) -> None:
    with pytest.raises(OSError, match="full"):
        Patience("the storage")(lambda again: _raise(OSError(errno.ENOSPC, "full")))
    assert not clock.slept


def _raise(error: Exception) -> None:
    raise error


def test_the_environment_sets_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "5")
    assert Patience("s").seconds == 5.0
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(RunError, match="a number from 0"):
            Patience("s")


def test_only_the_same_result_counts_as_told(tmp_path, clock, monkeypatch) -> None:
    """Another process may have told the trial meanwhile, with another value."""
    storage = open_storage(f"sqlite:///{tmp_path}/trials.db")
    with quiet():
        study = optuna.create_study(storage=storage)
    trial = study.ask()
    backend = database(storage)
    tell = optuna.storages.RDBStorage.set_trial_state_values
    failures = [sqlite_error(10)]

    def other_was_quicker(self, trial_id, state, values=None):
        if failures:
            tell(self, trial_id, state, [9.0])
            raise failures.pop()
        return tell(self, trial_id, state, values)

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", other_was_quicker)
    with pytest.raises(UpdateFinishedTrialError):
        backend.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])
