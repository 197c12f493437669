"""Optuna's journal file, opened so that a kill at any moment does no harm.

The journal is one JSON record per line, appended. A process killed in the middle of an append
leaves a last line without its end; Optuna forgives that when reading, but the next record
would be joined on to it and both would be lost. One killed while it held the lock
leaves the lock file, for which the next one would wait. Both are put right on opening, and
before an append is tried again that a file system did not answer.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
)
from optuna.trial import TrialState

from fusetune.errors import RunError
from fusetune.files.record import words
from fusetune.optimization.patience import Patience

logger = logging.getLogger(__name__)

_BEGINNING = b'{"op_code":'
_ATTRIBUTES = frozenset({2, 3, 8, 9})  # op codes of users' and system attributes


def open_journal(path: Path, patience: float | None = None) -> JournalStorage:
    """Open or create a journal. The caller sees to it that nobody else has it open.

    Args:
        path: The file.
        patience: Seconds for which a file system that does not answer is tried again; None
            takes the default.

    Raises:
        RunError: If the file is no journal, is damaged before its end, or cannot be
            written to.
    """
    path = path.absolute()  # the lock is a file beside it, wherever the process goes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        _remove_leftover_locks(path)
        return replayed(PatientJournal(path, Patience(str(path), patience)), path)
    except OSError as error:
        raise RunError(f"The journal of trials {path} cannot be opened: {error}.") from error


def replayed(journal: BaseJournalBackend, path: Path) -> JournalStorage:
    """The storage that a journal describes.

    Raises:
        RunError: If its records are JSON, but do not make studies and trials.
    """
    try:
        storage = JournalStorage(journal)
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            count = len(study.directions)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                if len([float(value) for value in trial.values]) != count:
                    raise ValueError(f"trial {trial.number} of {name} has not {count} values")
        return storage
    except OSError:
        raise
    except Exception as error:  # whatever a record without its keys, or of odd values, gives
        raise RunError(
            f"The journal of trials {path} is damaged: {words(error)}.",
            "Restore it from a copy; or remove it, and run with --force to search anew.",
        ) from error


class PatientJournal(JournalFileBackend):
    """A journal of this process alone, whose file system may be away for a while.

    Args:
        path: The file, absolute.
        patience: How long it may be.
    """

    def __init__(self, path: Path, patience: Patience) -> None:
        super().__init__(str(path), lock_obj=JournalFileOpenLock(str(path)))
        self._path = path
        self._patience = patience

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Records from that number on."""
        read = super().read_logs
        return self._patience(lambda again: list(read(log_number_from)))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records: all of them once, however often it is tried.

        Raises:
            RunError: If the file that came back is not the one that went away.
        """
        append = super().append_logs
        end: int | None = None

        def attempt(again: bool) -> None:
            nonlocal end
            if end is None:
                end = self._path.stat().st_size
            elif again:
                _remove_leftover_locks(self._path)
                self._cut(end)
            try:
                append(logs)
            except RuntimeError as error:  # Optuna's, of a lock that cannot be given back
                if not isinstance(cause := error.__context__, OSError):
                    raise
                raise OSError(cause.errno, cause.strerror, cause.filename) from error

        self._patience(attempt)

    def _cut(self, end: int) -> None:
        """Take back what an earlier try has written: nothing, half or all of it."""
        size = self._path.stat().st_size
        if size < end:
            raise RunError(
                f"The journal of trials {self._path} has {size} bytes; it had {end}.",
                "Restore it from a copy, then run again.",
            )
        if size > end:
            os.truncate(self._path, end)


def existing_journal(path: Path) -> JournalFileBackend:
    """A journal that others may be writing to, for reading; nothing in it is put right.

    Raises:
        RunError: If there is none, or the file is no journal.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_BEGINNING))
    except OSError as error:
        raise RunError(f"There is no journal of trials {path}: {error.strerror}.") from error
    if not _BEGINNING.startswith(start):
        raise RunError(f"{path} is no journal of trials; it begins with {start!r}.")
    place = str(path.absolute())
    return JournalFileBackend(place, lock_obj=JournalFileOpenLock(place))


class Watching(BaseJournalBackend):
    """A journal that somebody else writes, followed, with attributes of one's own beside it.

    Attributes that are set here (notes above all) stay in memory; the file is never written
    to. Studies and trials cannot be made, changed or deleted: their numbers would no longer
    be those of the file.
    """

    def __init__(self, file: BaseJournalBackend) -> None:
        self._file = file
        self._read = 0
        self._records: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Records from that number on: those of the file and one's own, as they came."""
        self._follow()
        return self._records[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep attributes in memory.

        Raises:
            RunError: If it is anything else.
        """
        if not all(record["op_code"] in _ATTRIBUTES for record in logs):
            raise RunError("The run is only shown here: its trials cannot be changed.")
        self._follow()
        self._records += logs

    def _follow(self) -> None:
        new = list(self._file.read_logs(self._read))
        self._read += len(new)
        self._records += new


def repair(path: Path) -> int:
    """Cut off what an interrupted append has left at the end of a journal.

    Returns:
        The number of bytes cut off.

    Raises:
        RunError: If the file is no journal, or is damaged before its end.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    if not _BEGINNING.startswith(content[: len(_BEGINNING)]):
        raise RunError(
            f"{path} is no journal of trials; it begins with {content[:20]!r}.",
            hint="Move it away, or choose another folder.",
        )
    lines = content.splitlines(keepends=True)
    kept = len(lines)
    while kept and not _is_record(lines[kept - 1]):
        kept -= 1
    for number, line in enumerate(lines[:kept], start=1):
        if not _is_record(line):
            raise RunError(
                f"The journal of trials {path} is damaged: line {number} is no record.",
                hint="Restore it from a copy, or start the stage anew with --force.",
            )
    surplus = sum(len(line) for line in lines[kept:])
    if surplus:
        with path.open("r+b") as file:
            file.truncate(len(content) - surplus)
        logger.info("cut %d bytes of an unfinished record off %s", surplus, path)
    return surplus


def _is_record(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _remove_leftover_locks(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        logger.info("removed the lock %s of a process that was ended", leftover)
        leftover.unlink(missing_ok=True)
