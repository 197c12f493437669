"""Optuna's journal file, opened so that a kill at any moment does no harm.

The journal is one JSON record per line, appended. A process killed in the middle of an append
leaves a last line without its end; Optuna forgives that when reading, but the next record
would be joined on to it and both would be lost. One killed while it held the lock
leaves the lock file, for which the next one would wait. Both are put right on opening.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from fusetune.errors import RunError

logger = logging.getLogger(__name__)

_BEGINNING = b'{"op_code":'


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
