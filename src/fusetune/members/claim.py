"""One process per folder: the second is refused, and told who holds it and since when.

The claim is a lock of the operating system on the file `.lock` in the folder. It ends with the
process, however that ends: there is no stale lock to remove after a kill. What the file says
of its holder is for people, and for one case: processes that the holder had started by a fork
share its lock, and may outlive it for a moment after a kill. For those the next one waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import psutil

from fusetune.errors import RunError
from fusetune.members.disk import without_links
from fusetune.redaction import printable

LOCK = ".lock"
APPENDED = (LOCK, "run.log", "trials.journal", "trials.journal.lock")
"""What is written in place, so that a link there would change another file of the folder."""

PATIENCE = 15.0  # seconds that the children of a holder who has died get to follow


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a folder.

    Attributes:
        process: Its id.
        started: When that process began, seconds since 1970, from the system's own record.
        host: The machine's name.
    """

    process: int
    started: float
    host: str

    @classmethod
    def this(cls) -> Holder:
        """The process that asks."""
        return cls(os.getpid(), psutil.Process().create_time(), platform.node())

    @classmethod
    def read(cls, file: TextIO) -> Holder | None:
        """What a lock file says; None if its holder has not written yet."""
        file.seek(0)
        try:
            found = json.loads(file.read(1000))
            return cls(int(found["process"]), float(found["started"]), str(found["host"]))
        except (ArithmeticError, KeyError, OSError, TypeError, ValueError):
            return None

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended: of another machine, nothing is known."""
        if self.host != platform.node():
            return False
        try:
            found = psutil.Process(self.process)
            same = abs(found.create_time() - self.started) < 1.0  # else the id was given anew
            return not same or found.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    def __str__(self) -> str:
        began = datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.process} on {self.host}, which started at {began}"


@contextlib.contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, made if need be; released when the process ends, however it ends.

    Args:
        folder: What this process alone may write to.
        what: How messages call it.

    Raises:
        RunError: If another process holds it, it cannot be written to, a link in it leads out
            of it, or a file that is appended to is a link.
    """
    with _open(folder, what) as file:
        _lock(file, folder)
        refuse_links_out(folder)
        _require_own(file, folder)
        file.truncate(0)
        file.write(json.dumps(asdict(Holder.this())))
        file.flush()
        yield


def _open(folder: Path, what: str) -> TextIO:
    """The lock file of a folder; both are made if need be.

    Raises:
        RunError: If that fails, or the file is a link or something else than a file.
    """
    if str(folder) != printable(str(folder)):
        raise RunError(
            f"{what} {folder} has a name with control characters, or bytes that are no UTF-8.",
            "Give another folder.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOCK, "a+", encoding="utf-8", opener=without_links)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP and (folder / LOCK).is_symlink():
            raise RunError(f"{folder / LOCK} is a link.", "Remove it.") from error
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{what} {folder} cannot be written to: {reason}.", "Give another folder."
        ) from error


def _require_own(file: TextIO, folder: Path) -> None:
    """Check that a lock file is no hard link to another file, which would be overwritten.

    Raises:
        RunError: If it is.
    """
    file.seek(0)
    if os.fstat(file.fileno()).st_nlink > 1 and file.read(1) and Holder.read(file) is None:
        raise RunError(
            f"{folder / LOCK} is another name of a file that is no lock of fusetune's.",
            "Remove it.",
        )


def refuse_links_out(home: Path, folder: Path | None = None) -> None:
    """Check that no link in a folder leads out of it: what is written must not land elsewhere.

    Args:
        home: The folder.
        folder: The part of it to look through; all of it by default.

    Raises:
        RunError: If one does.
    """
    for entry in os.scandir(folder or home):
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            appended = folder is None and entry.name in APPENDED
            if appended or not target.is_relative_to(home.resolve()):
                leaves = "" if appended else f" that leaves the run folder, to {target}"
                raise RunError(
                    f"{entry.path} is a link{leaves}.",
                    "Remove it; to keep a run elsewhere, give that folder with --out.",
                )
        elif entry.is_dir():
            refuse_links_out(home, Path(entry.path))


def _lock(file: TextIO, folder: Path) -> None:
    """Take the lock, at once or never; after a holder's death, once its children are gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = Holder.read(file)
        except OSError as error:
            raise RunError(
                f"{folder} is on a file system without locks: {error.strerror}.",
                "Put the folder on a local disk, or on one that has them.",
            ) from error
        if holder is None or not holder.ended or time.monotonic() > deadline:
            who = str(holder or "another process")
            if holder is not None and holder.ended:
                who = f"processes that were started by {who} and has ended"
            raise RunError(
                f"{folder} is in use by {who}.", "Wait for it, stop it, or give another folder."
            )
        time.sleep(0.1)
