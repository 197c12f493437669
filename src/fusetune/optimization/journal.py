"""Optuna's journal file, opened so that a kill at any moment does no harm.

The journal is one JSON record per line, appended. A process killed in the middle of an append
leaves a last line without its end; Optuna forgives that when reading, but the next record
would be joined on to it and both would be lost. One killed while it held the lock
leaves the lock file, for which the next one would wait. Both are put right on opening.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
)

from fusetune.errors import RunError

logger = logging.getLogger(__name__)

_BEGINNING = b'{"op_code":'
_ATTRIBUTES = frozenset({2, 3, 8, 9})  # op codes of users' and system attributes


def open_journal(path: Path) -> JournalStorage:
    """Open or create a journal. The caller sees to it that nobody else has it open.

    Raises:
        RunError: If the file is no journal, is damaged before its end, or cannot be
            written to.
    """
    path = path.absolute()  # the lock is a file beside it, wherever the process goes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        _remove_leftover_locks(path)
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        return JournalStorage(backend)
    except OSError as error:
        raise RunError(f"The journal of trials {path} cannot be opened: {error}.") from error


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
