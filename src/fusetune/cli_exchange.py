"""Commands that hand a run to other tools: push, dashboard, studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli_errors import echo, errors

Run = Annotated[Path, typer.Argument(help="The run folder.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(push)
    app.command()(dashboard)
    app.command()(studies)


def push(
    folder: Annotated[Path, typer.Argument(help="A run folder, or an exported model.")],
    repo: Annotated[str, typer.Argument(help="As user/name.")],
    private: Annotated[bool, typer.Option("--private", help="For a new repository.")] = False,
    license: Annotated[
        str | None, typer.Option(help="For the card, such as apache-2.0.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="For the card: id of the base model on the Hub.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the files, send nothing.")
    ] = False,
) -> None:
    """Publish the fused model on the Hugging Face Hub."""
    with errors():
        from fusetune.pipeline import push as publishing

        found = publishing.prepare(folder, repo, license=license, base_model=base_model)
        if dry_run:
            echo(found.card)
            for name, size in found.sizes.items():
                echo(f"{size:>15,}  {name}")
            echo(f"{sum(found.sizes.values()):>15,}  bytes in all, for {repo}")
        for note in found.notes:
            echo(note, fg="yellow", err=True)
        if not dry_run:
            echo(publishing.push(found, private=private))


def dashboard(
    folder: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine alone.")] = "127.0.0.1",
) -> None:
    """Follow a run in optuna-dashboard; nothing done there changes the run."""
    with errors():
        from fusetune.pipeline.dashboard import serve

        serve(folder, host=host, port=port, announce=echo)


def studies(
    folder: Run,
    to: Annotated[
        str | None, typer.Option(help="Copy them into this storage: a URL or a journal file.")
    ] = None,
) -> None:
    """List the run's Optuna studies, or copy them into another storage."""
    with errors():
        from fusetune.pipeline.display import Display
        from fusetune.pipeline.studies import copy_to, listed

        if to is not None:
            copy_to(folder, to, Display())
            return
        for row in listed(folder):
            objectives = ", ".join(row.objectives)
            echo(f"{row.name}: {row.complete} of {row.trials} trials complete; {objectives}")
