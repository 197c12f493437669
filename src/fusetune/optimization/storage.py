"""Where trials are kept: a journal file or a database."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from fusetune.errors import RunError, StorageError
from fusetune.members.disk import is_disk_full
from fusetune.optimization.journal import Watching, existing_journal, open_journal


def open_storage(location: str | PathLike[str]) -> BaseStorage:
    """Open or create the storage of trials.

    Args:
        location: A database URL (`sqlite:///…`, `postgresql://…`), or the path of a journal
            file, which must have no other user at the time; see `journal`.

    Raises:
        RunError: If it cannot be opened.
    """
    url = str(location)
    if "://" not in url:
        return open_journal(Path(location))
    try:
        with quiet():
            return RDBStorage(url)
    except Exception as error:  # drivers raise their own: SQLAlchemy's, psycopg's, imports
        raise RunError(
            f"The storage {url} cannot be opened: {_first_line(error)}.",
            hint="Check the URL, that its driver is installed and that the server answers. "
            "Run folders keep no password: give it in the environment (PGPASSWORD), in "
            "~/.pgpass, or with storage=URL again.",
        ) from error


def open_existing(location: str | PathLike[str]) -> BaseStorage:
    """Open a storage of somebody else's, or of a run that goes on, for reading.

    Nothing is created, repaired or unlocked. A journal is never written to: attributes that
    are set stay in memory.

    Args:
        location: As for `open_storage`.

    Raises:
        RunError: If there is none, or it cannot be opened.
    """
    url = str(location)
    if "://" not in url:
        return JournalStorage(Watching(existing_journal(Path(location))))
    scheme, _, file = url.partition(":///")
    if scheme.startswith("sqlite") and not Path(file.partition("?")[0]).is_file():
        raise RunError(f"There is no storage {url}: the file {file} does not exist.")
    return open_storage(url)


@contextmanager
def storing() -> Iterator[None]:
    """Failures of the storage in words."""
    try:
        yield
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        if is_disk_full(error):
            raise disk_full(error) from error
        raise StorageError(
            f"The storage of trials cannot be written to: {_first_line(error)}.",
            hint="Finished trials are kept; run again once it can.",
        ) from error


def disk_full(error: BaseException) -> StorageError:
    """What to tell the user when a write found no space left."""
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    return StorageError(
        f"The disk is full{where}.", hint="Free some space and run again: trials are kept."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its messages and without warnings about young functions."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)
