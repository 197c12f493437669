"""A disk that is full and a storage that is away: a clear message, and no trial is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from fusetune.errors import StorageError
from fusetune.executors.serial import SerialExecutor
from fusetune.members.disk import full_disk_is_an_error, replaced_folder, write_json
from fusetune.objective import LOSS
from fusetune.optimization import patience
from fusetune.optimization.recording import SUGGEST_SECONDS, Proposal, RecordingSampler
from fusetune.optimization.study import Finished, Loop, Pruned, open_storage

TRIALS = 5


class Halving(RecordingSampler):
    """Each proposal follows from what was told before."""

    def __init__(self) -> None:
        super().__init__({"x": FloatDistribution(0, 1)}, 0)

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        told = [t.value or 0.0 for t in trials if t.state is TrialState.COMPLETE]
        return Proposal({"x": (1.0 + sum(told)) / 2 ** (number + 1) % 1.0}, "test")


def evaluate(x: float, number: int, report: Callable[[int, float], bool]) -> Finished | Pruned:
    for step in range(3):
        if report(step, x + step):
            return Pruned()
    return Finished({"loss": x}, {"note": "ran to the end"})


def run(
    place: str | Path | BaseStorage,
    evaluate: Callable[..., Any] = evaluate,
    trials: int = TRIALS,
) -> optuna.Study:
    opened = place if isinstance(place, BaseStorage) else open_storage(place, patience=0.0)
    loop = Loop(opened, SerialExecutor())
    return loop.run(
        "s", Halving(), lambda t: t.suggest_float("x", 0, 1), evaluate,
        trials=trials, objectives=(LOSS,), pruner=optuna.pruners.MedianPruner(2),
    )  # fmt: skip


def told(study: optuna.Study) -> list[Any]:
    return [
        (t.number, t.state.name, t.values, t.params, t.intermediate_values,
         {k: v for k, v in t.user_attrs.items() if k != SUGGEST_SECONDS})
        for t in study.trials
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return told(run(tmp_path_factory.mktemp("whole") / "trials.journal"))


def append_that_fails(
    monkeypatch: pytest.MonkeyPatch, at: int, number: int, torn: bool
) -> None:
    """The `at`-th append fails, and leaves half a record behind if it is `torn`."""
    append, calls = JournalFileBackend.append_logs, [0]

    def failing(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        calls[0] += 1
        if calls[0] == at:
            if torn:
                with open(self._file_path, "ab") as file:
                    file.write(json.dumps(logs[0]).encode()[:11])
            raise OSError(number, os.strerror(number), self._file_path)
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", failing)


@pytest.mark.parametrize(
    ("number", "message", "torn"),
    [(errno.ENOSPC, "disk is full", True), (errno.EDQUOT, "disk is full", False),
     (errno.EIO, "cannot be written to", True), (errno.EROFS, "cannot be written to", False),
     (errno.ESTALE, "cannot be written to", False)],
)  # fmt: skip
def test_every_write_of_a_trial_may_fail(
    number: int, message: str, torn: bool, tmp_path: Path, undisturbed: list[Any]
) -> None:
    journal = tmp_path / "trials.journal"
    told_by: list[StorageError] = []
    for at in range(1, 200):  # it gets a little further each time, and is started again
        with pytest.MonkeyPatch.context() as patch:
            append_that_fails(patch, at, number, torn)
            try:
                study = run(journal)
                break
            except StorageError as error:
                told_by.append(error)
    assert len(told_by) > TRIALS
    assert all(message in str(error) and "run again" in error.hint.lower() for error in told_by)
    assert told(study) == undisturbed


class AwayError(OSError):
    """What a file system says whose server is away."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO), path)


@pytest.mark.parametrize("moment", ["before", "torn", "after", "locked"])
def test_a_file_system_that_is_away_for_a_while(
    moment: str,
    tmp_path: Path,
    undisturbed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each append fails twice: nothing, half or all of it had got through."""
    append, tries = JournalFileBackend.append_logs, [0]

    def failing(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        tries[0] += 1
        if tries[0] % 3 == 0:
            return append(self, logs)
        if moment == "torn":
            with open(self._file_path, "ab") as file:
                file.write(json.dumps(logs[0]).encode()[:11])
        if moment in ("after", "locked"):
            append(self, logs)
        if moment == "locked":  # as the lock cannot be removed either
            Path(f"{self._file_path}.lock").touch()
            try:
                raise AwayError(self._file_path)
            except OSError:
                raise RuntimeError("Error: did not possess lock")  # noqa: B904
        raise AwayError(self._file_path)

    monkeypatch.setattr(JournalFileBackend, "append_logs", failing)
    monkeypatch.setattr(patience, "SHORTEST", 0.0)
    journal = tmp_path / "trials.journal"
    with caplog.at_level(logging.WARNING):
        assert told(run(open_storage(journal, patience=60.0))) == undisturbed
    appends = len(journal.read_bytes().splitlines())
    assert tries[0] == 3 * appends  # each record once
    said = [m for m in caplog.messages if "does not answer" in m]
    assert len(said) == appends  # not for each try
    expected = r"trials\.journal does not answer: .*Input/output.* again for 60 s"
    assert re.search(expected, said[0])


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_database_that_is_away_for_a_while(
    moment: str,
    first: int,
    tmp_path: Path,
    undisturbed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every third transaction fails: it is not stored, or is and its answer is lost."""
    url = f"sqlite:///{tmp_path}/trials.db"
    storage = open_storage(url, patience=60.0)
    commits = [0]

    def fail(session: Session) -> None:
        commits[0] += 1
        if commits[0] % 3 == first:
            cause = sqlite3.OperationalError("disk I/O error")
            cause.sqlite_errorcode = 10
            raise OperationalError("COMMIT", {}, cause)

    monkeypatch.setattr(patience, "SHORTEST", 0.0)
    monkeypatch.setattr(optuna.storages._rdb.storage.random, "random", lambda: 0.0)
    event.listen(Session, moment, fail)
    try:
        study = run(storage)
    finally:
        event.remove(Session, moment, fail)
    assert commits[0] > 10 * TRIALS
    assert told(study) == undisturbed
    assert told(run(url)) == undisturbed  # as stored, too


def test_an_evaluation_that_finds_no_space_is_not_at_fault(
    tmp_path: Path, undisturbed: list[Any]
) -> None:
    def full(x: float, number: int, report: Callable[[int, float], bool]) -> Finished:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint-7")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed writing file") from error

    journal = tmp_path / "trials.journal"
    with pytest.raises(StorageError, match="disk is full"):
        run(journal, full)
    left = optuna.load_study(study_name="s", storage=open_storage(journal))
    assert [t.state for t in left.trials] == [TrialState.RUNNING]
    assert told(run(journal)) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, where this machine lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, undisturbed: list[Any]) -> None:
    journal, ballast = small_disk / "trials.journal", small_disk / "ballast"
    run_of_two = [0]

    def filling(x: float, number: int, report: Callable[[int, float], bool]) -> Any:
        if number == 2 and not run_of_two[0]:
            run_of_two[0] = 1
            with ballast.open("wb", 0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\x00" * 4096)
        return evaluate(x, number, report)

    def long(x: float, number: int, report: Callable[[int, float], bool]) -> Any:
        found = filling(x, number, report)  # the last block still has room for some records
        note = "x" * 9000 if run_of_two[0] else ""
        return Finished(found.values, {**found.attributes, "note": note or "ran to the end"})

    with pytest.raises(StorageError, match="disk is full"):
        run(journal, long)
    ballast.unlink()
    assert told(run(journal)) == undisturbed


def test_what_is_replaced_is_old_or_new(small_disk: Path) -> None:
    record = small_disk / "record.json"
    write_json(record, {"old": 1})
    with (
        pytest.raises(StorageError, match="disk became full"),
        full_disk_is_an_error(small_disk),
    ):
        write_json(record, {"new": "x" * 400_000})
    assert json.loads(record.read_text()) == {"old": 1}
    with pytest.raises(StorageError), full_disk_is_an_error(small_disk), \
            replaced_folder(small_disk / "fused") as new:  # fmt: skip
        (new / "weights").write_bytes(b"\x00" * 400_000)
    assert [path.name for path in small_disk.iterdir()] == ["record.json"]
    write_json(record, {"new": 2})
    assert json.loads(record.read_text()) == {"new": 2}


def test_a_database_that_is_locked(tmp_path: Path, undisturbed: list[Any]) -> None:
    url = f"sqlite:///{tmp_path}/trials.db?timeout=0.05"
    holder = sqlite3.connect(tmp_path / "trials.db", isolation_level=None)

    def locking(x: float, number: int, report: Callable[[int, float], bool]) -> Any:
        if number == 1:
            holder.execute("BEGIN EXCLUSIVE")
        return evaluate(x, number, report)

    with pytest.raises(
        StorageError, match=r"cannot be written to: .*\. Finished trials are kept"
    ):
        run(url, locking, 2)
    holder.execute("ROLLBACK")
    holder.close()
    assert told(run(url, trials=2)) == undisturbed[:2]


def values(loss: float) -> Mapping[str, float]:
    return {"loss": loss}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_fails_its_trial_alone(loss: float, tmp_path: Path) -> None:
    def diverging(x: float, number: int, report: Callable[[int, float], bool]) -> Finished:
        report(0, loss)
        return Finished(values(loss if number == 1 else x))

    study = run(tmp_path / "trials.journal", diverging)
    failed = study.trials[1]
    assert failed.state is TrialState.FAIL
    assert failed.user_attrs["reason"] == f"loss is {loss}"
    assert not failed.intermediate_values
    assert [t.state for t in study.trials].count(TrialState.COMPLETE) == TRIALS - 1
