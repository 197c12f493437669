"""Where trials are kept: a journal file or a database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from fusetune.errors import RunError, StorageError
from fusetune.members.disk import is_disk_full
from fusetune.optimization.database import PatientDatabase
from fusetune.optimization.journal import Watching, existing_journal, open_journal, replayed
from fusetune.optimization.patience import Patience, reason
from fusetune.redaction import without_secrets

PASSWORD = "FUSETUNE_STORAGE_PASSWORD"
"""Environment variable: the password of a storage whose URL has none."""

HOST = "FUSETUNE_STORAGE_HOST"
"""Environment variable: the host, or hosts with commas, that get the password."""

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
    return _open(location, (heartbeats, beat, silence), patience, new=True)


def _open(
    location: str | PathLike[str],
    heart: tuple[bool, int, int],
    patience: float | None,
    *,
    new: bool,
) -> BaseStorage:
    """As `open_storage`; without `new`, tables are only looked for and not made."""
    text = str(location)
    if "://" not in text:
        return open_journal(Path(location), patience)
    shown = without_password(text)
    waits = Patience(shown, patience)
    try:
        url = _connection(text)
        _require_studies(url)
        beats = heart[1:] if heart[0] else (None, None)
        found = _open_database(url, waits, beats, new=new)
        return get_storage(found)  # with its cache: loading a study reads what is new
    except RunError:
        raise
    except Exception as error:  # drivers raise their own: SQLAlchemy's, psycopg's, imports
        why = reason(error).replace(text, shown)
        missing = isinstance(error, ImportError) and "psycopg" in why
        raise RunError(
            f"The storage {shown} cannot be opened: {why}.",
            "Install its driver with: pip install 'fusetune[postgresql]'"
            if missing
            else "Check the URL, that its driver is installed, that the server answers and "
            "lets the user create tables. Run folders keep no password; give yours in the "
            f"environment ({PASSWORD} with {HOST}), in ~/.pgpass, or with storage=URL again.",
        ) from None  # a traceback could show the URL


def _open_database(
    url: sqlalchemy.URL,
    patience: Patience,
    heart: tuple[int | None, int | None],
    tries: int = 10,
    *,
    new: bool,
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
                    skip_table_creation=not new,
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
    if url.password is not None or any("password" in key.lower() for key in url.query):
        return url
    password = os.environ.get(PASSWORD)
    if password and url.username:
        _require_named(url, PASSWORD)
        return url.set(password=password)
    if os.environ.get("PGPASSWORD") and url.drivername.startswith("postgresql"):
        _require_named(url, "PGPASSWORD")  # the driver sends it
    return url


def _require_named(url: sqlalchemy.URL, variable: str) -> None:
    """Check that the user has named the server that would get the user's password.

    A recipe, or the recipe of a run folder, may be somebody else's: what it names must not get
    what the user's environment keeps for another server.

    Raises:
        RunError: If not.
    """
    named = [os.environ.get(HOST, ""), os.environ.get("PGHOST", "")]
    known = {part.strip().lower() for text in named for part in text.split(",")} - {""}
    for host in _hosts(url):
        if host.lower() not in known and host.lower().rpartition(":")[0] not in known:
            raise RunError(
                f"The storage {without_password(str(url))} would get the password of "
                f"{variable}, and its host {host} is not one that you have named for it.",
                f"If it may have the password, name it: {HOST}={host}.",
            )


def _hosts(url: sqlalchemy.URL) -> list[str]:
    """Every place that a connection by this URL may be made to, but sockets of this machine."""
    found = [url.host or ""] if url.port is None else [f"{url.host}:{url.port}"]
    for key in ("host", "hostaddr", "service", "servicefile", "passfile", "unix_socket"):
        given = url.query.get(key, ())
        values = (given,) if isinstance(given, str) else given
        found += [part for value in values for part in value.split(",")]
    return [host for host in found if host and not host.startswith("/")]


def _require_studies(url: sqlalchemy.URL) -> None:
    """Check that a file of SQLite is no database of something else, which would get tables.

    Raises:
        RunError: If it is.
    """
    file = Path(url.database or "")
    if not url.drivername.startswith("sqlite") or not file.is_file():
        return
    with contextlib.closing(
        sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    ) as db:
        rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    names = {name for (name,) in rows}
    if names and not names & {"studies", "alembic_version"}:
        raise RunError(
            f"{file} is a database of something else: it has the tables "
            f"{', '.join(sorted(names)[:5])}.",
            "Give another file, as sqlite:///trials.db.",
        )


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
        return replayed(Watching(existing_journal(Path(location))), Path(location))
    scheme, _, file = url.partition(":///")
    if scheme.startswith("sqlite") and not Path(file.partition("?")[0]).is_file():
        raise RunError(f"There is no storage {url}: the file {file} does not exist.")
    return _open(url, (False, HEARTBEAT, SILENCE), None, new=False)


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
