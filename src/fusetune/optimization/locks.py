"""A lock that all processes at one database respect."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage

from fusetune.members.disk import locked
from fusetune.optimization.database import PatientDatabase
from fusetune.optimization.patience import Patience
from fusetune.optimization.storage import database


@contextmanager
def exclusive(storage: BaseStorage, number: int) -> Iterator[None]:
    """Hold a lock that all processes at one database respect; released when one dies.

    An advisory lock of PostgreSQL, a locked file beside an SQLite database.

    Args:
        storage: A database.
        number: Of the study, so that others are not held up.
    """
    found = database(storage)
    engine = found.engine
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection, _guarding(found, connection):
            connection.execute(
                sqlalchemy.text("SELECT pg_advisory_xact_lock(:space, :number)"),
                {"space": 0x66757365, "number": number},  # "fuse"
            )
            yield
        return
    with locked(Path(f"{engine.url.database}.lock")):
        yield


@contextmanager
def _guarding(storage: RDBStorage, lock: sqlalchemy.Connection) -> Iterator[None]:
    """Make no trial once the connection that holds the lock is lost: another may hold it."""
    if not isinstance(storage, PatientDatabase):
        yield
        return

    def check() -> None:
        try:
            lock.execute(sqlalchemy.text("SELECT 1"))
        except sqlalchemy.exc.SQLAlchemyError as error:  # no other, or Optuna would go on
            raise ConnectionResetError(errno.ECONNRESET, "the lock was lost") from error

    storage.guard = check
    try:
        yield
    finally:
        storage.guard = None


def patience_of(storage: RDBStorage) -> Patience:
    """That of the storage; of one that was not opened here, none."""
    return storage.patience if isinstance(storage, PatientDatabase) else Patience("", 0.0)
