"""What a user sees when something goes wrong: one message, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fusetune.errors import FusetuneError
from fusetune.redaction import printable

LIMITS = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENAMETOOLONG,
    errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EROFS,
)  # fmt: skip
"""Errors of the system that no check can foresee: rights, disks, sizes of files, open files."""

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "CUDA out of memory")
"""Phrases of PyTorch's errors for want of memory, which are no `MemoryError`."""


def first_process() -> bool:
    """Whether this one speaks, of the processes that a launcher may have started."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return alone or os.environ.get("RANK", "0") == "0"


def echo(text: str, *, fg: str | None = None, err: bool = False) -> None:
    """Print a text that may come from a file: its control characters are written out."""
    typer.secho(printable(text), fg=fg, err=err)


def _limit(error: MemoryError | OSError | RuntimeError) -> str | None:
    """The resource of the system that an error says has run out or is refused, or None."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return "The memory is not enough"
    if "inline_container" in str(error):  # PyTorch's writer, whatever stopped it
        return (
            "A file cannot be written to its end: the disk is full, or files may not be larger"
        )
    if isinstance(error, OSError) and error.errno in LIMITS:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return None


@contextmanager
def errors() -> Iterator[None]:
    """One clear message and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        yield
    except FusetuneError as error:
        if first_process():
            echo(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except (MemoryError, OSError, RuntimeError) as error:
        limit = _limit(error)
        if limit is None:
            raise
        echo(
            f"Error: {limit}. What is finished is kept: run the same command again to go on.",
            fg="red",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho(
            "\nInterrupted. What is finished is kept: run the same command again to go on.",
            fg="yellow",
            err=True,
        )
        raise typer.Exit(130) from None
