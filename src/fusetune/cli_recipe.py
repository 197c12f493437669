"""Commands on recipes: the ready ones, and what a recipe may have."""

from __future__ import annotations

from typing import Annotated

import typer

from fusetune.cli_errors import echo, errors
from fusetune.cli_options import Overrides

recipes = typer.Typer(
    help="Show ready recipes and the schema of a recipe.", no_args_is_help=True
)


@recipes.command("list")
def recipe_list() -> None:
    """Name the ready recipes."""
    from fusetune.recipe_file import ready

    for name in ready():
        echo(name)


@recipes.command("show")
def recipe_show(
    source: Annotated[str, typer.Argument(help="A recipe file or a ready recipe's name.")],
    overrides: Overrides = None,
) -> None:
    """Show a recipe with every default."""
    with errors():
        from fusetune.recipe_file import find, load

        echo(load(find(source), overrides or ()).to_yaml())


@recipes.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of a recipe."""
    import json

    from fusetune.recipe import Recipe

    echo(json.dumps(Recipe.model_json_schema(), indent=2))
