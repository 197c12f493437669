"""YAML and dotted overrides → `Recipe`, with every error at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusetune.errors import RecipeError, closest
from fusetune.recipe import Recipe
from fusetune.recipe_yaml import read_text, read_yaml

MOST = 40  # errors that are listed
LONGEST = 200  # characters of a wrong value


def ready() -> dict[str, Path]:
    """The recipes that come with fusetune, by name: "cola-minilm", …."""
    packaged = Path(str(files("fusetune"))) / "recipes"
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    folder = packaged if packaged.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str) -> Path:
    """A recipe file by its path, or a ready recipe by its name.

    Raises:
        RecipeError: If there is neither.
    """
    path = Path(source)
    if path.is_file():
        return path
    recipes = ready()
    if source in recipes:
        return recipes[source]
    near = closest(path.stem, recipes)
    raise RecipeError(
        f"There is no recipe {source!r}{near}.",
        f"Give a YAML file, or one of: {', '.join(recipes)}.",
    )


def load(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        source: A YAML file.
        overrides: Dotted keys, `"train.epochs=3"`; values are YAML.

    Raises:
        RecipeError: If the file cannot be read, or anything in it is not valid; the
            message lists every error with its path.
    """
    return parse(read_text(Path(source)), overrides, name=str(source))


def parse(text: str, overrides: Iterable[str] = (), *, name: str = "recipe") -> Recipe:
    """As `load`, from YAML text; `name` stands in the error messages."""
    tree = read_yaml(text, name)
    if not isinstance(tree, dict):
        raise RecipeError(f"{name} must be a mapping of keys, got {type(tree).__name__}.")
    for override in overrides:
        _override(tree, override)
    return _validated(tree, name)


def derive(recipe: Recipe, changes: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """The recipe with other values, validated again.

    Args:
        recipe: Stays as it is.
        changes: Dotted key → value.
        name: Stands in the error messages.

    Raises:
        RecipeError: If the changed recipe is not valid.
    """
    tree = recipe.dump()
    for key, value in changes.items():
        _set(tree, key, value)
    return _validated(tree, name)


def _validated(tree: Mapping[str, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_all_errors(error, name)) from None


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, str]:
    """Dotted key → "old → new" for every leaf in which two recipes differ."""
    found: dict[str, str] = {}
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= difference(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = f"{a!r} → {b!r}"
    return found


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(
            f"An override must read key=value, got {override!r}.", "Example: train.epochs=3."
        )
    _set(tree, key, read_yaml(value, f"override {key}"))


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _all_errors(error: ValidationError, name: str) -> str:
    lines: list[str] = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(
            str(part) for part in item["loc"] if not str(part).startswith("function-")
        )
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = len(lines) < MOST  # looking for near names takes a while
            known = _keys_at(item["loc"][:-1]) if near else []
            message = "unknown key" + closest(str(item["loc"][-1]), known)
        elif item["type"] != "missing" and not isinstance(item["input"], dict):
            message += f" (got {_short(item['input'])})"
        lines += [f"{where}: {message}" if where else line for line in message.split("\n  ")]
    lines = list(dict.fromkeys(lines))
    more = [f"and {len(lines) - MOST:,} more"] if len(lines) > MOST else []
    listed = "\n".join(f"  {line}" for line in [*lines[:MOST], *more])
    return f"{name} has {len(lines)} error(s):\n{listed}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))
