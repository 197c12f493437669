"""The task of a recipe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from fusetune.errors import RecipeError
from fusetune.recipe_file import shown, wording
from fusetune.recipe_sections import TaskSection
from fusetune.redaction import without_secrets
from fusetune.tasks import find as find_task
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import Task


def make_task(section: TaskSection, seed: int, *, trains: bool = True) -> Task:
    """The task, whose data are not read yet.

    Args:
        section: Of the recipe.
        seed: Of the shuffle that makes splits, where the section has none of its own.
        trains: Whether there has to be a train split.

    Raises:
        RecipeError: If the kind is unknown, or takes other arguments.
    """
    split = section.split
    splitting = Splitting(
        halve=split.halve if split else None,
        hold_out=split.hold_out if split else None,
        seed=seed if split is None or split.seed is None else split.seed,
        trains=trains,
    )
    make = find_task(section.kind)
    parameters = set(inspect.signature(make).parameters)
    if not section.inputs.keys() <= parameters:
        wanted = "prompt and reference" if "prompt" in parameters else "text and label"
        raise RecipeError(f"task: a task of kind {section.kind} takes {wanted}.")
    unknown = set(section.options) - parameters
    if unknown:
        names = ", ".join(sorted(unknown))
        raise RecipeError(f"task.options: a task of kind {section.kind} has no {names}.")
    return make(
        without_secrets(section.name or default_name(section.data)),
        section.data,
        **section.inputs,
        metrics=section.metrics,
        splitting=splitting,
        **_typed_options(make, section.options),
    )


def _typed_options(make: Callable[..., Task], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the kind's own annotations want them: no text is taken for true.

    Raises:
        RecipeError: If a value is of another type.
    """
    function: Any = getattr(make, "__init__", make) if inspect.isclass(make) else make
    hints = get_type_hints(function)
    typed = {}
    for name, value in options.items():
        try:
            if isinstance(value, bool) and "bool" not in str(hints[name]):
                raise RecipeError(f"task.options.{name} is no boolean; got {shown(value)}.")
            typed[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            said = wording(error.errors(include_url=False)[0])
            raise RecipeError(f"task.options.{name}: {said}.") from None
    return typed


def default_name(data: str | Mapping[Any, str]) -> str:
    """What a data set is called when the recipe does not say: its last word.

    "nyu-mll/glue:cola" and "../data/cola" are both "cola"; of a mapping, the folder counts.
    """
    if isinstance(data, str):
        return re.split(r"[/:\\]", data.rstrip("/"))[-1]
    first = Path(next(iter(data.values()))).absolute()
    return first.parent.name
