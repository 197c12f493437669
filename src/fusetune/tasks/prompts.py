"""Rows → prompts and references: the template of the recipe, and paths to fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fusetune.errors import DataError, RecipeError, alike
from fusetune.tasks.splitting import Part


class PromptTemplate:
    """A Jinja template over the fields of a row.

    It runs in a sandbox: a recipe from elsewhere can read the rows, and nothing else.

    Args:
        source: As "Summarise: {{ dialogue }} Summary:".

    Raises:
        RecipeError: If it is no template, or names no field.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        try:
            self._template = environment.from_string(source)
            self.fields = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except Exception as error:  # also of templates that are nested too deep to be read
            raise RecipeError(f"task.prompt is no Jinja template: {_words(error)}.") from error
        if not self.fields:
            raise RecipeError(
                f"task.prompt names no field of the data: {source!r} would be the same "
                "for every row.",
                hint="Write fields in double braces, as {{ question }}.",
            )

    def prompts(self, part: Part) -> list[str]:
        """The prompt of every row.

        Raises:
            DataError: If a field is not in the data, or a row cannot be rendered.
        """
        require_columns(part, self.fields, "task.prompt")
        rows = part.rows.select_columns(sorted(self.fields))
        prompts = []
        for i, row in enumerate(rows):
            try:
                prompts.append(self._template.render(row))
            except Exception as error:  # whatever the methods and filters in it raise
                raise DataError(
                    f"task.prompt cannot be filled in for {part.where(i)}: {_words(error)}."
                ) from error
        return prompts


def _words(error: Exception) -> str:
    """What an error says; one for want of memory says nothing."""
    return "it takes too much memory" if isinstance(error, MemoryError) else str(error)


def require_columns(part: Part, names: frozenset[str] | set[str], key: str) -> None:
    """Check that fields are there.

    Raises:
        DataError: If one is not; the message names those that are.
    """
    there = part.rows.column_names
    unknown = sorted(names - set(there))
    if unknown:
        listed = ", ".join(f"{name!r}{alike(name, there)}" for name in unknown)
        raise DataError(
            f"{key} names {listed}, but the {part.source} split has {', '.join(there)}."
        )


def text_column(part: Part, name: str) -> list[str]:
    """The texts of a column.

    Raises:
        DataError: If a value is missing, or no text.
    """
    values = list(part.rows[name][:])
    for i, value in enumerate(values):
        if not isinstance(value, str):
            found = "missing" if value is None else f"a {type(value).__name__}"
            raise DataError(f"Texts must be strings; {name!r} is {found} in {part.where(i)}.")
    return values


def references(part: Part, path: str) -> list[tuple[str, ...]]:
    """The references of every row: texts that are not empty, so there may be none.

    Args:
        part: The rows.
        path: A column, or the way into nested ones, as "answers.text". What stands there is
            a text or a list of texts.

    Raises:
        DataError: If there is no such column, or something else than texts.
    """
    column, *inner = path.split(".")
    require_columns(part, {column}, "task.reference")
    found = []
    for i, value in enumerate(part.rows[column][:]):
        try:
            texts = _texts(value, inner)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"References are texts or lists of texts; {path!r} has {error} in "
                f"{part.where(i)}."
            ) from error
        found.append(tuple(text for text in texts if text.strip()))
    return found


def _texts(value: Any, path: Sequence[str]) -> list[str]:
    """All texts under a path; KeyError or TypeError where the path or the type is wrong."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item, path)]
    if path:
        if not isinstance(value, Mapping):
            raise TypeError(f"a {type(value).__name__}")
        if path[0] not in value:
            raise KeyError(f"no {path[0]}")
        return _texts(value[path[0]], path[1:])
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__}")
    return [value]


def grouped(
    prompts: Sequence[str], golds: Sequence[tuple[str, ...]]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Rows with the same prompt as one example, in the order of their first appearance."""
    together: dict[str, list[str]] = {}
    for prompt, texts in zip(prompts, golds, strict=True):
        together.setdefault(prompt, []).extend(texts)
    return list(together), [tuple(dict.fromkeys(texts)) for texts in together.values()]
