"""Rows → prompts and references: the template of the recipe, and paths to fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fusetune.errors import DataError, RecipeError, alike
from fusetune.tasks.splitting import Part

CONSTANTS = frozenset({"true", "false", "none", "True", "False", "None", "self"})
"""Names that a template takes for its own, whatever a row has."""


class _Null(str):
    """A missing value: empty where it is written, and `none` where a template asks."""

    def __eq__(self, other: object) -> bool:
        return other is None or str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


NULL = _Null()


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which a key of a mapping comes before the methods of Python's."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The value of `obj.attribute`."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


class PromptTemplate:
    """A Jinja template over the fields of a row.

    It runs in a sandbox, on plain data: a recipe from elsewhere can read the rows, and nothing
    else. A field that is null is empty in the prompt.

    Args:
        source: As "Summarise: {{ dialogue }} Summary:".

    Raises:
        RecipeError: If it is no template, or names no field.
    """

    def __init__(self, source: str) -> None:
        environment = _Environment(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        environment.tests["none"] = lambda value: value is None or value is NULL
        environment.policies["json.dumps_function"] = _json
        try:
            own = _called(environment.parse(source)) & environment.globals.keys()
            environment.globals = {name: environment.globals[name] for name in own}
            fields = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
            words = {text for _, kind, text in environment.lex(source) if kind == "name"}
        except Exception as error:  # also of templates that are nested too deep to be read
            raise RecipeError(f"task.prompt is no Jinja template: {_words(error)}.") from error
        self._constants = words & CONSTANTS
        self.fields = frozenset(fields - CONSTANTS)
        if not self.fields:
            raise RecipeError(
                f"task.prompt names no field of the data: {source!r} would be the same "
                "for every row.",
                hint="Write fields in double braces, as {{ question }}.",
            )

    def prompts(self, part: Part) -> list[str]:
        """The prompt of every row.

        Raises:
            DataError: If a field is not in the data, has a value that is no plain data, or a
                row cannot be rendered.
        """
        require_columns(part, self.fields, "task.prompt")
        if taken := sorted(self._constants & set(part.rows.column_names)):
            raise DataError(
                f"task.prompt has the word {taken[0]!r}, a column's name that means something "
                "else in templates.",
                hint="Give the column another name.",
            )
        rows = part.rows.select_columns(sorted(self.fields))
        prompts = []
        for i, row in enumerate(rows):
            plain = {name: _plain(value, name, part, i) for name, value in row.items()}
            try:
                prompts.append(self._template.render(plain))
            except Exception as error:  # whatever the methods and filters in it raise
                raise DataError(
                    f"task.prompt cannot be filled in for {part.where(i)}: {_words(error)}."
                ) from error
        return prompts

    def empty(self, part: Part) -> list[str]:
        """How often each field is null, which leaves its place in the prompt empty."""
        counts = {n: sum(v is None for v in part.rows[n][:]) for n in sorted(self.fields)}
        return [
            f"In {n:,} of {len(part.rows):,} {part.source} rows {name!r} is null: empty in the "
            "prompt."
            for name, n in counts.items()
            if n
        ]


def _plain(value: Any, column: str, part: Part, row: int) -> Any:
    """The value without nulls; nothing that has methods of its own comes into a template."""
    if value is None:
        return NULL
    if type(value) in (str, bool, int, float):
        return value
    if type(value) in (list, tuple):  # tuples are the pairs of a map
        return [_plain(item, column, part, row) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain(item, column, part, row) for key, item in value.items()}
    raise DataError(
        f"A prompt is made of texts, numbers, booleans, lists and mappings; {column!r} has "
        f"something else, {type(value).__name__}, in {part.where(row)}."
    )


def _json(value: Any, **options: Any) -> str:
    """The JSON that the filter `tojson` writes: null where a value is missing."""
    return json.dumps(_with_nulls(value), **options)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    return None if value is NULL else value


def _called(tree: nodes.Template) -> set[str]:
    """Names that a template calls: `range(3)` is Jinja's own, no field of that name."""
    return {
        call.node.name
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Name)
    }


def _words(error: Exception) -> str:
    """The text of an error; of one for want of memory, which has none, words of our own."""
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
