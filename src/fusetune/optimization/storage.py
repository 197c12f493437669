"""Where trials are kept: a journal file or a database."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from fusetune.errors import RunError, StorageError
from fusetune.members.disk import is_disk_full
from fusetune.optimization.database import PatientDatabase
from fusetune.optimization.journal import Watching, existing_journal, open_journal
from fusetune.optimization.patience import Patience, reason
from fusetune.redaction import without_secrets

PASSWORD = "FUSETUNE_STORAGE_PASSWORD"
"""Environment variable: the password of a storage whose URL has none."""

HEARTBEAT = 20  # seconds between signs of life of a trial in a shared study
SILENCE = 120  # seconds without one after which its process counts as dead


def open_storage(
    location: str | PathLike[str],
    *,
    heartbeats: bool = False,
    beat: int = HEARTBEAT,
    silence: int = SILENCE,
    patience: float | None = None,
) -> BaseStorage:
    """Open or create the storage of trials.

    It has to answer now. Once it is open it may be away for a while: operations are tried
    again; see `patience`.

    Args:
        location: A database URL (`sqlite:///…`, `postgresql://…`), or the path of a journal
            file, which must have no other user at the time; see `journal`.
        heartbeats: Whether studies are shared with other processes; see `claims`.
        beat: Seconds between heartbeats.
        silence: Seconds without one after which a process counts as dead.
        patience: Seconds for which a storage that does not answer is tried again; None
            takes the environment's (`patience.VARIABLE`), else two minutes.

    Raises:
        RunError: If it cannot be opened.
    """
    text = str(location)
    if "://" not in text:
        return open_journal(Path(location), patience)
    shown = without_password(text)
    waits = Patience(shown, patience)
    try:
        url = _connection(text)
        found = _open_database(url, waits, (beat, silence) if heartbeats else (None, None))
        return get_storage(found)  # with its cache: loading a study reads what is new
    except Exception as error:  # drivers raise their own: SQLAlchemy's, psycopg's, imports
        why = reason(error).replace(text, shown)
        missing = isinstance(error, ImportError) and "psycopg" in why
        raise RunError(
            f"The storage {shown} cannot be opened: {why}.",
            "Install its driver with: pip install 'fusetune[postgresql]'"
            if missing
            else "Check the URL, that its driver is installed, that the server answers and "
            "lets the user create tables. Run folders keep no password: give it in the "
            f"environment ({PASSWORD}, PGPASSWORD), in ~/.pgpass, or with storage=URL again.",
        ) from None  # a traceback could show the URL


def _open_database(
    url: sqlalchemy.URL,
    patience: Patience,
    heart: tuple[int | None, int | None],
    tries: int = 10,
) -> PatientDatabase:
    """Open a database, with tables of Optuna's if it has none.

    Drivers that start together all find none, and all but one fail at making them.
    """
    while True:
        try:
            with quiet():
                return PatientDatabase(
                    url.render_as_string(hide_password=False),
                    patience,
                    engine_kwargs=_engine(url),
                    heartbeat_interval=heart[0],
                    grace_period=heart[1],
                )
        except DBAPIError as error:
            made_meanwhile = isinstance(error, IntegrityError) or "already exists" in str(error)
            tries -= 1
            if not made_meanwhile or tries == 0:
                raise
            time.sleep(0.2)


def database(storage: BaseStorage) -> RDBStorage:
    """The database under a storage as studies see it.

    Raises:
        RunError: If trials are kept elsewhere.
    """
    found = getattr(storage, "_backend", storage)  # Optuna puts a cache before it
    if not isinstance(found, RDBStorage):
        raise RunError(
            "Several processes can share a study in a database only.",
            "Give one with --storage, as postgresql://user@host/database.",
        )
    return found


def without_password(url: str) -> str:
    """The URL as it may be stored and shown; of one that cannot be read, the beginning."""
    try:
        found = make_url(without_secrets(url))
    except (ArgumentError, ValueError):
        return f"{url.partition('://')[0]}://…"
    query = {k: v for k, v in found.query.items() if "pass" not in k.lower()}
    kept = found.set(query=query)
    if found.password is not None:
        kept = sqlalchemy.URL.create(
            kept.drivername, kept.username, None, kept.host, kept.port, kept.database, query
        )
    return kept.render_as_string(hide_password=False)


def _connection(text: str) -> sqlalchemy.URL:
    """The URL with our driver, and the password of the environment if it has none."""
    url = make_url(text)
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    password = os.environ.get(PASSWORD)
    if password and url.password is None and url.username:
        url = url.set(password=password)
    return url


def _engine(url: sqlalchemy.URL) -> dict[str, Any]:
    """Settings of the connections: found dead before they are used, patient with locks."""
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.drivername.startswith("sqlite") and "timeout" not in url.query:
        settings["connect_args"] = {"timeout": 60}
    if url.drivername == "postgresql+psycopg":
        # A server that vanished from the network says nothing: noticed within a minute.
        quick = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        settings["connect_args"] = {"connect_timeout": 10, "tcp_user_timeout": 60_000, **quick}
    return settings


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
    except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        if is_disk_full(error):
            raise disk_full(error) from error
        raise StorageError(
            f"The storage of trials cannot be written to: {reason(error)}.",
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
