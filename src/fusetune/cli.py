"""The command line: each command is a few lines over the API.

Nothing heavy is imported before a command runs, so that `--help` is instant.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli_errors import echo, errors
from fusetune.cli_exchange import add_to as add_exchange
from fusetune.cli_fuse import add_to as add_fuse
from fusetune.cli_fuse import next_lines
from fusetune.cli_options import (
    AllowCode,
    Executor,
    Force,
    Out,
    Overrides,
    PrintRecipe,
    Quiet,
    Source,
    Storage,
    Study,
    Verbose,
    Version,
    placed,
    recipe_and_folder,
    run_name,
    run_stages,
)
from fusetune.cli_recipe import recipes
from fusetune.cli_storage import storage
from fusetune.cli_studies import add_to
from fusetune.errors import FusetuneError
from fusetune.redaction import shown

app = typer.Typer(
    name="fusetune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes, name="recipe")
app.add_typer(storage, name="storage")


@app.callback()
def _whole(version: Version = False) -> None:
    """Turn the checkpoints of one fine-tuning run into one better model."""


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
    with errors():
        from fusetune.demo import demo_recipe

        recipe = demo_recipe(out, overrides or ())
        run_stages(recipe, out, None, force=force, quiet=quiet, verbose=verbose)


def _add_stage(name: str, stage: str | None, summary: str) -> None:
    """A command for one stage of a run, or for all of them."""

    def command(
        source: Source,
        overrides: Overrides = None,
        out: Out = None,
        force: Force = False,
        allow_code: AllowCode = False,
        print_recipe: PrintRecipe = False,
        executor: Executor = None,
        storage: Storage = None,
        study: Study = None,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        overrides = placed(overrides, executor, storage, study)
        shown = {"print_recipe": print_recipe, "quiet": quiet, "verbose": verbose}
        _stage(stage, source, overrides, out, force=force, allow_code=allow_code, **shown)

    app.command(name, help=summary)(command)


for _name, _which, _summary in (
    ("run", None, "Search, train, fuse and report; run again to go on after an interruption."),
    ("search", "search", "Search the fine-tuning hyper-parameters only."),
    ("train", "train", "Train with the hyper-parameters found, and collect the members."),
):
    _add_stage(_name, _which, _summary)
add_fuse(app)
_add_stage(
    "report", "report", "Evaluate on the test split; write results.json and report.html."
)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the model goes.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Whose weights to use; the chosen one's by default.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of your own, comma-separated, one per member.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="A file of front/ or of mergekit, or 'loss <= 0.5, max f1'."),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="Of adapters: merged, adapter or adapter-svd:RANK.")
    ] = None,
    mergekit: Annotated[
        Path | None, typer.Option(help="Write a recipe of mergekit to this file.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write the model of another method, of a point of the front, or of other weights."""
    with errors():
        from fusetune.pipeline import export_model
        from fusetune.pipeline.display import Display

        export_model(
            folder,
            out,
            method=method,
            weights=weights,
            pick=pick,
            mergekit=mergekit,
            display=Display(),
            form=form,
            allow_code=allow_code,
        )


@app.command()
def compare(
    source: Annotated[str, typer.Argument(help="A recipe file or a ready recipe's name.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "41,42,43,44",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods and procedures, or all; the recipe's by default."
        ),
    ] = None,
    out: Out = None,
    force: Force = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare methods, and whole pipelines, over several seeds in one table."""
    with errors():
        from fusetune.recipe_file import find, load

        path = find(source)
        recipe = load(path, overrides or ())
        numbers = _numbers(seeds)
        rows = [name.strip() for name in methods.split(",")] if methods else None
        from fusetune.pipeline.compare import compare as run_all
        from fusetune.pipeline.display import Display

        display = Display(quiet=quiet, verbose=verbose)
        folder = out or Path("runs") / f"compare-{run_name(path)}"
        options: dict[str, Any] = {"force": force, "allow_code": allow_code}
        run_all(recipe, folder, numbers, methods=rows, display=display, **options)


add_to(app)
add_exchange(app)


@app.command()
def members(
    paths: Annotated[list[str], typer.Argument(help="Checkpoint folders, or patterns.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Consent to .bin, .pt, .pth, .ckpt files.")
    ] = False,
) -> None:
    """List checkpoints and say whether, and why not, they can be fused."""
    with errors():
        import logging

        from fusetune.members.pool import inspect
        from fusetune.pipeline.display import Display
        from fusetune.report.members import members_table

        logging.getLogger("fusetune").addHandler(logging.NullHandler())  # notes are printed
        found = inspect(paths, allow_pickle=allow_pickle, own_model=True)
        console = Display().console
        console.print(members_table(found.members))
        for note in found.notes:
            console.print(shown(note), markup=False)
        for problem in found.problems:
            console.print(problem, markup=False)
        if not found.compatible:
            raise typer.Exit(2)
        console.print(f"These {len(found.members)} checkpoints can be fused.")
        if found.unchecked:
            text = f"Not checked against their base model: {found.unchecked}"
            console.print(shown(text), markup=False)
        elif not found.model and not found.members[0].config:
            echo("Whether they fit your model is checked when you give it (model_init).")
        for line in next_lines(found.members):
            echo(shown(line))


def _stage(
    stage: str | None,
    source: str,
    overrides: list[str] | None,
    out: Path | None,
    *,
    print_recipe: bool,
    **options: bool,
) -> None:
    with errors():
        recipe, out = recipe_and_folder(source, overrides, out)
        if print_recipe:
            echo(recipe.to_yaml())
            return
        run_stages(recipe, out, stage, **options)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise FusetuneError(
            f"--seeds must be whole numbers with commas between them; got {text!r}."
        ) from None


def main() -> None:
    """Entry point of the `fusetune` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a log that is not UTF-8 gets escapes for what it lacks, and no error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
