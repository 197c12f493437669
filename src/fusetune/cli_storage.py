"""Commands for the storage of trials."""

from __future__ import annotations

from typing import Annotated

import typer

from fusetune.cli_errors import echo, errors

storage = typer.Typer(help="Move studies between storages.", no_args_is_help=True)

Place = "a run folder, a journal file, or a URL: sqlite:///… or postgresql://…"


@storage.callback()
def _group() -> None:
    """Move studies between storages."""


@storage.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=f"From {Place}")],
    target: Annotated[str, typer.Argument(metavar="TO", help=f"To {Place}")],
) -> None:
    """Copy all studies; of a run folder, so that the run goes on with the other storage."""
    with errors():
        from fusetune.pipeline.move import copy_storage

        for line in copy_storage(source, target):
            echo(line)
