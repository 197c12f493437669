"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli_errors import first_process
from fusetune.errors import RecipeError

if TYPE_CHECKING:
    from fusetune.recipe import Recipe

Source = Annotated[
    str, typer.Argument(help="A recipe file, a ready recipe's name, or a run folder.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted keys, such as train.epochs=3.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The run folder; runs/NAME by default.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Start anew instead of going on where it stopped.")
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Consent to code that the recipe names: metrics of your own, Python of harness "
        "tasks. Remembered for the run folder.",
    ),
]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Show the resolved recipe and do nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")]
PLACES = "Machines and storage"
Executor = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Where evaluations run: serial or ray; the recipe's executor.kind.",
        rich_help_panel=PLACES,
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Where trials are kept: sqlite:///… or postgresql://…; the recipe's storage.",
        rich_help_panel=PLACES,
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        help="A search that several runs share in that storage; the recipe's study.",
        rich_help_panel=PLACES,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log as well.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        from fusetune import __version__

        typer.echo(f"fusetune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
    ),
]


def recipe_and_folder(
    source: str, overrides: Sequence[str] | None, out: Path | None
) -> tuple[Recipe, Path]:
    """The recipe that a command was given, and the run folder it means.

    Args:
        source: A recipe file, a ready recipe's name, or a run folder.
        overrides: Dotted keys.
        out: The run folder, if it was given.

    Raises:
        RecipeError: If there is no such recipe, or it is not valid.
    """
    from fusetune.recipe_file import find, load

    folder = Path(source)
    if folder.is_dir():
        return load(folder / "recipe.yaml", overrides or (), of_run=True), out or folder
    path = find(source)
    return load(path, overrides or ()), out or Path("runs") / run_name(path)


def run_name(recipe: Path) -> str:
    """The name of the run folder of a recipe's file: a name, and no way to another place.

    Raises:
        RecipeError: If the file's name gives none.
    """
    name = recipe.stem
    if not name.strip(".") or not name.isprintable():
        raise RecipeError(
            f"The recipe's file name {recipe.name!r} gives no name for a run folder.",
            "Give a folder with --out.",
        )
    return name


def placed(
    overrides: Sequence[str] | None,
    executor: str | None = None,
    storage: str | None = None,
    study: str | None = None,
) -> list[str]:
    """The overrides, with those that the options of machines and storage stand for."""
    options = {"executor.kind": executor, "storage": storage, "study": study}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value]
    return [*(overrides or ()), *given]


def run_stages(
    recipe: Recipe,
    out: Path,
    stage: str | None,
    *,
    force: bool,
    quiet: bool,
    verbose: bool,
    allow_code: bool = False,
) -> None:
    """Run all stages of a recipe, or one, and show how it goes."""
    if not quiet and first_process():
        typer.echo("fusetune: reading the data and the model …")
    from fusetune.pipeline import run as run_pipeline
    from fusetune.pipeline.display import Display
    from fusetune.pipeline.together import joined

    with joined(recipe) as leads:
        if leads:
            display = Display(quiet=quiet, verbose=verbose)
            options: dict[str, Any] = {"force": force, "allow_code": allow_code}
            run_pipeline(recipe, out, stage=stage, display=display, **options)
