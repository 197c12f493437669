"""What is done with checkpoints: `average` without data, `fuse` with data or a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    from fusetune.library.average import Averaged, Dtype
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
    app.command()(average)
    app.command()(fuse)


def average(
    members: Annotated[
        list[str], typer.Argument(help="Checkpoint folders, or quoted patterns.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the averaged model.")],
    last: Annotated[int | None, typer.Option(help="Only the last so many.")] = None,
    from_step: Annotated[int | None, typer.Option("--from", help="From this step on.")] = None,
    every: Annotated[int, typer.Option(help="Every n-th, back from the last.")] = 1,
    shape: Annotated[
        str, typer.Option(help="Of the weights: mean, linear, sqrt, or ema:0.9.")
    ] = "mean",
    weights: Annotated[
        str | None, typer.Option(help="One for each, oldest first: 0.2,0.8.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Model that the training began with; 'adapter' for LoRA's own."),
    ] = None,
    base_weight: Annotated[float, typer.Option(help="Its weight, 0 to 1.")] = 0.0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored by default.")
    ] = None,
    form: Annotated[
        str, typer.Option("--export", help="Of adapters: merged, adapter, adapter-svd:RANK.")
    ] = "merged",
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Consent to .bin, .pt, .pth, .ckpt files.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
) -> None:
    """Average checkpoints into one model: no data, no search."""
    with errors():
        from fusetune.library.average import average as write

        made = write(
            members,
            out,
            last=last,
            from_step=from_step,
            every=every,
            shape=shape,
            weights=None if weights is None else _numbers(weights),
            base=True if base == "adapter" else base,
            base_weight=base_weight,
            dtype=cast("Dtype | None", dtype),
            form=form,
            max_shard_size=max_shard_size,
            allow_pickle=allow_pickle,
            force=force,
            dry_run=dry_run,
        )
        for line in _average_lines(made, dry_run=dry_run):
            echo(line)


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


def _average_lines(made: Averaged, *, dry_run: bool) -> list[str]:
    """The lines that say what was, or would be, averaged, and how to load it."""
    width = max(len(member.name) for member in made.members)
    rows = [
        f"  {member.name:<{width}}  "
        f"{'step ' + str(member.step) if member.step is not None else 'step unknown':<14}"
        f"{weight:.4f}"
        for member, weight in zip(made.members, made.weights.values, strict=True)
    ]
    size = f"{made.parameters:,} parameters, {made.nbytes / 1e6:,.1f} MB"
    head = "Would average" if dry_run else "Averaged"
    along = ", ".join(made.files) or "nothing"
    kind = made.architecture or "the class that it was trained as"
    loading = f"Load it: {kind}.from_pretrained({str(made.folder)!r})"
    return [
        *made.notes,
        f"{head} {len(made.members)} checkpoints ({size}):",
        *rows,
        f"Files that go along: {along}",
        f"{'Would write' if dry_run else 'Written'} to {made.folder}",
        *([] if dry_run else [loading]),
    ]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FusetuneError(
            f"--weights must be numbers with commas between them; got {text!r}.",
            "Example: --weights 0.2,0.3,0.5.",
        ) from None
