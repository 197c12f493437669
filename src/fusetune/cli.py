"""The command line: each command is a few lines over the API.

Nothing heavy is imported before a command runs, so that `--help` is instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.errors import FusetuneError

if TYPE_CHECKING:
    from fusetune.recipe import Recipe

app = typer.Typer(
    name="fusetune",
    help="Turn the checkpoints of one fine-tuning run into one better model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes = typer.Typer(
    help="Show ready recipes and the schema of a recipe.", no_args_is_help=True
)
app.add_typer(recipes, name="recipe")

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
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Show the resolved recipe and do nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log as well.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")] = Path(
        "runs/demo"
    ),
    overrides: Overrides = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run everything on an embedded data set and a packaged model, in a few minutes."""
    with _errors():
        from fusetune.demo import demo_recipe

        recipe = demo_recipe(out, overrides or ())
        _stages(recipe, out, None, force=force, quiet=quiet, verbose=verbose)


@app.command()
def run(
    source: Source,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search, train, fuse and report; run again to go on after an interruption."""
    _stage(None, source, overrides, out, force, print_recipe, quiet, verbose)


@app.command()
def search(
    source: Source,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search the fine-tuning hyper-parameters only."""
    _stage("search", source, overrides, out, force, print_recipe, quiet, verbose)


@app.command()
def train(
    source: Source,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train with the hyper-parameters found, and collect the members."""
    _stage("train", source, overrides, out, force, print_recipe, quiet, verbose)


@app.command()
def fuse(
    source: Source,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search the fusion weights of the members and write the fused model."""
    _stage("fuse", source, overrides, out, force, print_recipe, quiet, verbose)


@app.command()
def report(
    source: Source,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate on the test split and write results.json and report.html."""
    _stage("report", source, overrides, out, force, False, quiet, verbose)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the model goes.")],
    method: Annotated[
        str | None, typer.Option(help="Whose weights to use; the chosen one's by default.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of your own, comma-separated, one per member.")
    ] = None,
) -> None:
    """Write the model of another method, or of weights of your own."""
    with _errors():
        from fusetune.pipeline import export_model
        from fusetune.pipeline.display import Display

        export_model(folder, out, method=method, weights=weights, display=Display())


@app.command()
def members(
    paths: Annotated[list[str], typer.Argument(help="Checkpoint folders, or patterns.")],
) -> None:
    """List checkpoints and say whether, and why not, they can be fused."""
    with _errors():
        from rich.console import Console

        from fusetune.members.pool import inspect
        from fusetune.report.members import members_table

        found = inspect(paths)
        console = Console(highlight=False)
        console.print(members_table(found.members))
        for path in found.incomplete:
            console.print(f"left out, not complete: {path}", markup=False)
        for problem in found.problems:
            console.print(problem, markup=False)
        if not found.compatible:
            raise typer.Exit(2)
        console.print(f"These {len(found.members)} checkpoints can be fused.")


@recipes.command("list")
def recipe_list() -> None:
    """Name the ready recipes."""
    from fusetune.recipe_file import ready

    for name in ready():
        typer.echo(name)


@recipes.command("show")
def recipe_show(
    source: Annotated[str, typer.Argument(help="A recipe file or a ready recipe's name.")],
    overrides: Overrides = None,
) -> None:
    """Show a recipe with every default."""
    with _errors():
        from fusetune.recipe_file import find, load

        typer.echo(load(find(source), overrides or ()).to_yaml())


@recipes.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of a recipe."""
    import json

    from fusetune.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


def _stage(
    stage: str | None,
    source: str,
    overrides: list[str] | None,
    out: Path | None,
    force: bool,
    print_recipe: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    with _errors():
        from fusetune.recipe_file import find, load

        folder = Path(source)
        if folder.is_dir():
            recipe = load(folder / "recipe.yaml", overrides or ())
            out = out or folder
        else:
            path = find(source)
            recipe = load(path, overrides or ())
            out = out or Path("runs") / path.stem
        if print_recipe:
            typer.echo(recipe.to_yaml())
            return
        _stages(recipe, out, stage, force=force, quiet=quiet, verbose=verbose)


def _stages(
    recipe: Recipe, out: Path, stage: str | None, *, force: bool, quiet: bool, verbose: bool
) -> None:
    if not quiet:
        typer.echo("fusetune: reading the data and the model …")
    from fusetune.pipeline import run as run_pipeline
    from fusetune.pipeline.display import Display

    display = Display(quiet=quiet, verbose=verbose)
    run_pipeline(recipe, out, stage=stage, force=force, display=display)


@contextmanager
def _errors() -> Iterator[None]:
    """One clear message and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        yield
    except FusetuneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho(
            "\nInterrupted. What is finished is kept: run the same command again to go on.",
            fg="yellow",
            err=True,
        )
        raise typer.Exit(130) from None
    except Exception as error:
        if not _disk_full(error):
            raise
        typer.secho(
            f"Error: the disk is full ({error}). Make room, then run the same command again: "
            "it goes on where it stopped.",
            fg="red",
            err=True,
        )
        raise typer.Exit(2) from None


def _disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of an error; libraries wrap it in their own."""
    import errno

    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error)
        # safetensors and PyTorch's writer have no error numbers.
        if "No space left on device" in text or "PytorchStreamWriter failed writing" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Entry point of the `fusetune` command."""
    app()
