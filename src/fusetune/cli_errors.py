"""What a user sees when something goes wrong: one message, an exit code, no traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fusetune.errors import FusetuneError
from fusetune.redaction import printable


def first_process() -> bool:
    """Whether this one speaks, of the processes that a launcher may have started."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return alone or os.environ.get("RANK", "0") == "0"


def echo(text: str, *, fg: str | None = None, err: bool = False) -> None:
    """Print a text that may come from a file: its control characters are written out."""
    typer.secho(printable(text), fg=fg, err=err)


@contextmanager
def errors() -> Iterator[None]:
    """One clear message and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        yield
    except FusetuneError as error:
        if first_process():
            echo(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho(
            "\nInterrupted. What is finished is kept: run the same command again to go on.",
            fg="yellow",
            err=True,
        )
        raise typer.Exit(130) from None
