"""Commands that look into a method rather than make a model: landscape, transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli_errors import errors
from fusetune.cli_options import (
    AllowCode,
    Force,
    Out,
    Overrides,
    Quiet,
    Source,
    Verbose,
    recipe_and_folder,
)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(landscape)
    app.command()(transfer)


def landscape(
    folder: Annotated[Path, typer.Argument(help="A run folder whose members were fused.")],
    members: Annotated[
        str | None,
        typer.Option(help="Three members, comma-separated; first, middle, last by default."),
    ] = None,
    grid: Annotated[int, typer.Option(min=2, help="Points along each axis.")] = 21,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; in the run folder by default.")
    ] = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw loss and metric over the plane through three members."""
    with errors():
        from fusetune.pipeline.display import Display
        from fusetune.pipeline.landscape import landscape as draw

        names = [name.strip() for name in members.split(",")] if members is not None else []
        display = Display(quiet=quiet, verbose=verbose)
        options: dict[str, Any] = {"grid": grid, "split": split, "out": out}
        options["allow_code"] = allow_code
        draw(folder, members=names, display=display, **options)


def transfer(
    source: Source,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=2, help="How many hyper-parameter settings.")] = 8,
    out: Out = None,
    force: Force = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare light variant and full model: do they rank hyper-parameters alike?"""
    with errors():
        recipe, folder = recipe_and_folder(source, overrides, out)
        from fusetune.pipeline.display import Display
        from fusetune.pipeline.transfer import transfer as run_all

        display = Display(quiet=quiet, verbose=verbose)
        options = {"force": force, "allow_code": allow_code}
        run_all(recipe, folder, trials=trials, display=display, **options)
