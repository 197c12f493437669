"""YAML and dotted overrides → `Recipe`, with every error at once."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusetune.errors import RecipeError, closest
from fusetune.recipe import Recipe
from fusetune.recipe_yaml import read_text, read_yaml
from fusetune.redaction import without_secrets

TEXTS = (
    *(f"task.options.{key}" for key in ("answer_pattern", "choices", "csv", "group")),
    *(f"task.options.{key}" for key in ("generation.stop", "no_answer", "system")),
    *(f"task.options.{key}!" for key in ("labels", "positive")),
)
"""Keys whose values are texts as they are written; see `recipe_yaml.read_yaml`."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A key that recipes no longer have.

    Attributes:
        key: Dotted.
        instead: What to write or do in its place, in one sentence.
        unused: Its values that ask for what is done in any case; they are left out.
        default: What it was where a recipe did not name it. Version 0.1.0 wrote that into the
            recipe of every run folder, where it is left out too.
    """

    key: str
    instead: str
    unused: tuple[object, ...]
    default: object


REMOVED = (
    Removed(
        "fuse.racing",
        "leave it out, as every w is evaluated on the whole validation split",
        (False,),
        False,
    ),
    Removed(
        "fuse.compile",
        "leave it out, as models are evaluated without torch.compile",
        (False,),
        False,
    ),
    Removed(
        "search.inner",
        "leave it out, as the inner search of every trial has its whole budget",
        ("full",),
        "auto",
    ),
    Removed(
        "train.judge",
        "leave it out, as a training with the λ of a light or short trial is always begun with "
        "half the learning rate too; train.retries: 0 trusts the search",
        ("half",),
        "promise",
    ),
)
"""Keys that version 0.2.0 no longer has, each with what to write instead."""

MOST = 40  # errors that are listed
LONGEST = 200  # characters of a wrong value
WORDS = {
    "dictionary": "mapping",
    "string": "text",
    "integer": "whole number",
    "boolean": "boolean, true or false",
    "tuple": "list",
}
"""Python's and pydantic's words of types, and those of recipes."""


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


def load(source: str | Path, overrides: Iterable[str] = (), *, of_run: bool = False) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        source: A YAML file.
        overrides: Dotted keys, `"train.epochs=3"`; values are YAML.
        of_run: Whether it is the recipe of a run folder, which names every default.

    Raises:
        RecipeError: If the file cannot be read, or anything in it is not valid; the
            message lists every error with its path.
    """
    return parse(read_text(Path(source)), overrides, name=str(source), of_run=of_run)


def parse(
    text: str, overrides: Iterable[str] = (), *, name: str = "recipe", of_run: bool = False
) -> Recipe:
    """As `load`, from YAML text; `name` stands in the error messages."""
    tree = read_yaml(text, name, texts=TEXTS)
    if not isinstance(tree, dict):
        raise RecipeError(f"{name} must be a mapping of keys, got {_kind(tree)}.")
    if of_run:
        tree = without_defaults(tree)
    given = tuple(overrides)
    _refuse_cluster(tree, given, name)
    for override in given:
        _override(tree, override)
    return _validated(tree, name)


def _refuse_cluster(tree: Mapping[str, Any], overrides: Iterable[str], name: str) -> None:
    """Check that no file names a cluster: its machines and this one run each other's code.

    Raises:
        RecipeError: If the recipe does, and the user has not said it too.
    """
    section = tree.get("executor")
    address = section.get("address") if isinstance(section, Mapping) else None
    keys = {override.partition("=")[0] for override in overrides}
    if address in (None, "local", os.environ.get("RAY_ADDRESS")) or keys & {
        "executor",
        "executor.address",
    }:
        return
    raise RecipeError(
        f"{name} names the cluster {address!r}, whose machines would run code on this one.",
        f"To join it, say so yourself: executor.address={address} on the command line, or "
        "RAY_ADDRESS in the environment; else leave it out of the file.",
    )


def given(overrides: Iterable[str], key: str) -> Any:
    """The value that overrides give a dotted key, or None if they leave it alone."""
    tree: Any = {}
    for override in overrides:
        _override(tree, override)
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


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


def without_removed(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe without the keys that are gone, and what to say of those that were in use.

    Returns:
        A copy of the tree; a message for each key that asked for something, by its dotted name.
    """
    left = copy.deepcopy(dict(tree))
    used = {}
    for removed, section, last in _removed_in(left):
        if section.pop(last) not in removed.unused:
            used[removed.key] = f"gone since version 0.2.0; {removed.instead}"
    return left, used


def without_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run folder without the keys that are gone and were at their defaults."""
    left = copy.deepcopy(dict(tree))
    for removed, section, last in _removed_in(left):
        if section[last] == removed.default:
            del section[last]
    return left


def _removed_in(tree: dict[str, Any]) -> list[tuple[Removed, dict[str, Any], str]]:
    """The keys of a recipe that are gone, each with the section that holds it."""
    found = []
    for removed in REMOVED:
        *parents, last = removed.key.split(".")
        section: Any = tree
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            found.append((removed, section, last))
    return found


def _validated(tree: Mapping[str, Any], name: str) -> Recipe:
    left, used = without_removed(tree)
    errors = [f"{key}: {message}" for key, message in used.items()]
    try:
        recipe = Recipe.model_validate(left)
    except ValidationError as error:
        errors += _errors(error, left)
    else:
        if not errors:
            return recipe
    more = [f"and {len(errors) - MOST:,} more"] if len(errors) > MOST else []
    listed = "\n".join(f"  {line}" for line in [*errors[:MOST], *more])
    raise RecipeError(f"{name} has {len(errors)} error(s):\n{listed}")


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
    below = [path.removeprefix(f"{key}.") for path in TEXTS if path.startswith(f"{key}.")]
    around = [path for path in TEXTS if f"{key}.".startswith(f"{path.removesuffix('!')}.")]
    texts = [*below, *("!" if path.endswith("!") else "" for path in around)]
    _set(tree, key, read_yaml(value, f"override {key}", texts=texts, whole=True))


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _errors(error: ValidationError, tree: object) -> list[str]:
    """What is wrong with a recipe, a line each with its key first."""
    lines: list[str] = []
    for item in error.errors(include_url=False, include_context=True):
        place = _place(item["loc"], tree, missing=item["type"] == "missing")
        where = ".".join(map(str, place))
        message = wording(item)
        if item["type"] == "extra_forbidden":
            near = len(lines) < MOST  # looking for near names takes a while
            known = _keys_at(place[:-1]) if near else []
            message = "unknown key" + closest(str(place[-1]), known)
        lines += [f"{where}: {message}" if where else line for line in message.split("\n  ")]
    return list(dict.fromkeys(map(_in_own_words, lines)))


def _in_own_words(line: str) -> str:
    """A line on a key with a secret's name: the secret is left out, and no word of ours.

    Texts that are shown hide what stands behind such a name and a colon.
    """
    key, _, message = line.partition(": ")
    if without_secrets(f"{key}: x") == f"{key}: x":
        return line
    return f"{key} – {message.partition(' (got ')[0].partition(', got ')[0]}"


def _place(
    location: tuple[int | str, ...], tree: object, *, missing: bool
) -> tuple[int | str, ...]:
    """The keys of a recipe on the way to an error, without pydantic's names of types."""
    place: list[int | str] = []
    for i, part in enumerate(location):
        keys: Container[Any] = tree if isinstance(tree, Mapping) else ()
        keys = range(len(tree)) if isinstance(tree, list) else keys
        if part in keys:
            tree = tree[part]  # type: ignore[index]
        elif not (missing and i == len(location) - 1):
            continue
        place.append(part)
    return tuple(place)


def wording(item: Any) -> str:
    """An error of pydantic in words of a recipe."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own words
        return message if isinstance(item["input"], dict) else _got(message, item["input"])
    if item["type"] == "missing":
        return "Field required"
    if item["type"] in ("dict_type", "model_type", "model_attributes_type"):
        message = "Input should be a valid mapping"
    if item["type"] == "sequence_str":
        message = "Input should be a list"
    message, *_ = message.partition(", unable to parse")[0].partition(" or instance of")
    for word, plain in WORDS.items():
        message = re.sub(rf"\b{word}\b", plain, message)
    return _got(message, item["input"])


def _got(message: str, value: object) -> str:
    return f"{message} (got {shown(value)})"


def _kind(value: object) -> str:
    """The type of a value that YAML gives."""
    names = {
        str: "text",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value as YAML writes it in one line, short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))
