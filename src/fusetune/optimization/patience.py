"""A storage that is away for a while: what failed is tried again, until it answers.

A server that restarts or a network file system whose server does is back within a minute or
two; a run of hours should not end for that. What only a person can put right, as a full disk,
a wrong password or missing rights, is not tried again.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from fusetune.errors import RunError
from fusetune.members.disk import is_disk_full

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a storage that does not answer is tried again."""

VARIABLE = "FUSETUNE_STORAGE_PATIENCE"
"""Environment variable: other seconds than `PATIENCE`; 0 tells every failure at once."""

SHORTEST, LONGEST = 0.5, 15.0  # seconds between two tries; they grow with the time away

AWAY = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNABORTED", "ECONNREFUSED",
        "ECONNRESET", "EPIPE", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET",
        "ENETUNREACH", "EREMOTEIO", "ENOLCK", "EAGAIN", "EINTR",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Error numbers of file systems that may be back: of the network, and of a device's reset."""

SQLSTATES = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "40001", "40P01"})
"""Beside class 08, connections: shutting down or starting, too many clients, deadlocks."""

SQLITE = frozenset({5, 6, 10, 14, 15})  # BUSY, LOCKED, IOERR, CANTOPEN, PROTOCOL

PASSING = (
    "starting up", "shutting down", "recovery mode", "not yet accepting", "too many clients",
    "remaining connection slots", "terminating connection",
)  # fmt: skip
"""What a PostgreSQL server says that refuses a connection for the moment only."""


class Patience:
    """Tries an operation again for as long as its storage is away.

    The time is counted from the first failure of any operation to the next success of any.
    Where one operation is made of others, the outermost is tried again.

    Args:
        name: The storage as messages show it.
        seconds: How long; None takes `VARIABLE` or `PATIENCE`.

    Raises:
        RunError: If the variable is no number from 0.
    """

    def __init__(self, name: str, seconds: float | None = None) -> None:
        self.name = name
        self.seconds = _wanted() if seconds is None else seconds
        self._since: float | None = None
        self._inside = threading.local()

    def __call__(self, operation: Callable[[bool], T]) -> T:
        """What the operation returns.

        Args:
            operation: Called with whether it was tried before. A try that failed may have
                got through, its answer alone being lost.

        Raises:
            Exception: Its own, if that does not mean "away", or the time is up.
        """
        if getattr(self._inside, "one", False):
            return operation(False)
        again = False
        while True:
            self._inside.one = True
            try:
                found = operation(again)
            except Exception as error:
                if not is_away(error) or not self._wait(error):
                    raise
            else:
                self._answered()
                return found
            finally:
                self._inside.one = False
            again = True

    def _wait(self, error: Exception) -> bool:
        """Sleep before the next try; False if there is to be none."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if self.seconds > 0.0:
                logger.warning(
                    "The storage of trials %s does not answer: %s. It is tried again for %g s.",
                    self.name, reason(error), self.seconds,
                )  # fmt: skip
        away = now - self._since
        if away >= self.seconds:
            return False
        time.sleep(min(self.seconds - away, max(SHORTEST, min(away, LONGEST))))
        return True

    def _answered(self) -> None:
        if self._since is not None and self.seconds > 0.0:
            away = time.monotonic() - self._since
            logger.warning("The storage of trials answers again, after %.1f s.", away)
        self._since = None


def is_away(error: BaseException | None) -> bool:
    """Whether an error means that the storage may answer again by itself."""
    if is_disk_full(error):
        return False
    root = _root(error)
    if isinstance(root, DBAPIError):
        return root.connection_invalidated or _says_so(root.orig)
    return isinstance(root, OSError) and root.errno in AWAY


def _says_so(error: BaseException | None) -> bool:
    """The same of what a database's driver raised."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith("08") or state in SQLSTATES
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in SQLITE
    # A connection that could not be made has no state, whatever the reason. FATAL is the
    # server's own word: it answers, and refuses.
    text = str(error)
    refused = "FATAL" in text and not any(words in text for words in PASSING)
    return type(error).__name__ in ("OperationalError", "InterfaceError") and not refused


def reason(error: BaseException) -> str:
    """The first line of what is at the root of an error, without its full stop."""
    # Optuna's own words are about data that are too long, whatever has happened.
    root = _root(error) or error
    text = str(getattr(root, "orig", None) or root).strip()
    return text.splitlines()[0].rstrip(".") if text else repr(root)


def _root(error: BaseException | None) -> BaseException | None:
    """What the database's driver or the system raised, under what libraries made of it."""
    while error is not None and not isinstance(error, DBAPIError | OSError):
        error = error.__cause__ or error.__context__
    return error


def _wanted() -> float:
    text = os.environ.get(VARIABLE)
    if not text:
        return PATIENCE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise RunError(f"{VARIABLE}: seconds, a number from 0; got {text!r}.")
    return seconds
