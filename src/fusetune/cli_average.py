"""The command `average`: checkpoints of a run into one model, without data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fusetune.cli_errors import echo, errors
from fusetune.errors import FusetuneError

if TYPE_CHECKING:
    from fusetune.library.average import Averaged, Dtype


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(average)


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
        from fusetune.library.average import DTYPES
        from fusetune.library.average import average as write

        if dtype is not None and dtype not in DTYPES:
            raise FusetuneError(
                f"--dtype is one of {', '.join(DTYPES)}; got {dtype!r}.", "Choose one of them."
            )
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
        for line in lines(made, dry_run=dry_run):
            echo(line)


def lines(made: Averaged, *, dry_run: bool) -> list[str]:
    """What was, or would be, averaged, and how to load it."""
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
