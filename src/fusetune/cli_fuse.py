"""The command `fuse`: of a recipe or a run folder, or of a finished run's checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli_errors import echo, errors
from fusetune.cli_options import (
    AllowCode,
    Executor,
    Force,
    Out,
    Overrides,
    PrintRecipe,
    Quiet,
    Storage,
    Verbose,
    placed,
    recipe_and_folder,
    run_stages,
)
from fusetune.errors import FusetuneError

if TYPE_CHECKING:
    from fusetune.members.member import Member
    from fusetune.pipeline.asking import Wanted
    from fusetune.recipe import Recipe

FINISHED = "Checkpoints of a finished run"


def _option(text: str, flag: str = "") -> Any:
    names = (f"--{flag}",) if flag else ()
    return typer.Option(*names, help=text, rich_help_panel=FINISHED)


Text = str | None


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(fuse)


def fuse(
    source: Annotated[
        str | None,
        typer.Argument(help="A recipe file, a ready recipe's name, or a run folder."),
    ] = None,
    overrides: Overrides = None,
    members: Annotated[
        list[str] | None,
        _option("Without a recipe: folders or quoted patterns, as 'out/checkpoint-*'."),
    ] = None,
    data: Annotated[Text, _option("File, folder or hub id of the rows that choose.")] = None,
    test: Annotated[Text, _option("File of the rows that only report.")] = None,
    text: Annotated[Text, _option("Columns of the texts, comma-separated.")] = None,
    label: Annotated[Text, _option("Column of the labels.")] = None,
    metrics: Annotated[Text, _option("Comma-separated; the first is the primary one.")] = None,
    prompt: Annotated[Text, _option("Jinja template, of models that generate.")] = None,
    reference: Annotated[Text, _option("Column of the text that should come out.")] = None,
    labels: Annotated[Text, _option("Names of the class ids, comma-separated.")] = None,
    model: Annotated[Text, _option("Folder or hub id of the tokenizer or base model.")] = None,
    kind: Annotated[Text, _option("Of the task, where the architecture does not tell.")] = None,
    allow_pickle: Annotated[
        bool,
        _option(
            "Consent to .bin, .pt, .pth, .ckpt files (weights_only).",
            "allow-pickle",
        ),
    ] = False,
    with_base: Annotated[
        bool,
        _option("Fuse the model that the training began with (--model) too.", "with-base"),
    ] = False,
    out: Out = None,
    force: Force = False,
    allow_code: AllowCode = False,
    print_recipe: PrintRecipe = False,
    executor: Executor = None,
    storage: Storage = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search the fusion weights of the members; write the fused model.

    With --members: of a finished run's checkpoints, all stages, by a recipe inferred from them.
    """
    with errors():
        overrides = placed(overrides, executor, storage)
        if members:
            from fusetune.pipeline.asking import Wanted

            columns, names, classes = (_listed(value) for value in (text, metrics, labels))
            where = (tuple(members), data, test, columns, label, names)
            task = (prompt, reference, classes, model, kind)
            wanted = Wanted(*where, *task, allow_pickle, with_base)
            say = not quiet and not print_recipe
            recipe, out = _inferred(wanted, _all_overrides(source, overrides), out, say=say)
        else:
            given = (data, test, text, label, metrics, prompt, reference, labels, model, kind)
            source = _source(source, alone=not any((*given, allow_pickle, with_base)))
            recipe, out = recipe_and_folder(source, overrides, out)
        if print_recipe:
            echo(recipe.to_yaml())
            return
        stage = None if members else "fuse"
        shown = {"quiet": quiet, "verbose": verbose}
        run_stages(recipe, out, stage, force=force, allow_code=allow_code, **shown)


def _inferred(
    wanted: Wanted, overrides: Sequence[str], out: Path | None, *, say: bool
) -> tuple[Recipe, Path]:
    from fusetune.pipeline.infer import infer

    found = infer(wanted, overrides)
    if say:
        echo("\n".join(found.notes))
    return found.recipe, out or Path("runs") / found.name


def _source(source: str | None, *, alone: bool) -> str:
    """The recipe or run folder, where there are no --members.

    Raises:
        FusetuneError: If there is none, or options of --members stand beside it.
    """
    if source is None:
        problem = "fuse needs a recipe or run folder, or --members with --data."
    elif alone:
        return source
    else:
        problem = "--data, --text and the like go with --members, which is not given."
    raise FusetuneError(
        problem,
        "Example: fusetune fuse --members 'out/checkpoint-*' --data val.jsonl --text text "
        "--label label --metrics accuracy.",
    )


def next_lines(members: Sequence[Member]) -> list[str]:
    """What to type next, for members that can be fused."""
    from fusetune.members.formats import PICKLES
    from fusetune.pipeline.asking import next_command, shortest
    from fusetune.pipeline.finished import read

    consent = ["--allow-pickle"] if any(f.suffix in PICKLES for f in members[-1].files) else []
    average = shlex.join(
        ["fusetune", "average", *shortest(members), "--out", "averaged", *consent]
    )
    plain = ["Their plain average, without data:", average]
    try:
        kind = read(members[-1]).kind
    except FusetuneError:
        kind = None
    if kind is None:
        search = "fusetune.fuse(…) with an evaluation of your own, as no task kind fits."
        return [*plain, f"The best one: {search}"]
    return [
        *plain,
        f"The best one ({kind}; words in capitals are yours to fill in):",
        next_command(members, kind),
    ]


def _listed(value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def _all_overrides(source: str | None, overrides: Sequence[str] | None) -> list[str]:
    """The arguments beside --members, which are overrides all of them.

    Raises:
        FusetuneError: If one is a recipe, a run folder, or what the shell made of a pattern.
    """
    found = [*([] if source is None else [source]), *(overrides or ())]
    for argument in found:
        if "=" not in argument:
            raise FusetuneError(
                f"--members takes the place of a recipe or run folder; got {argument!r} too.",
                "Leave one of them out; if the shell made it of a pattern, quote that: "
                "--members 'out/checkpoint-*'.",
            )
    return found
