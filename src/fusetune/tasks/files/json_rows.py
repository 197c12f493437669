"""JSON files as tables: lines, a list of rows, and the usual mappings around rows.

Python's parser, because Arrow's turns strings that look like dates into time stamps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.errors import DataError
from fusetune.tasks.files.delimited import decoded

FORMS = (
    "Usual forms are one object for each line, a list of objects, such a list under one key, "
    "and a mapping from column to list."
)

BETWEEN = re.compile(r"\s*")


class _Doubled(dict[str, Any]):
    """An object with a key twice, of which the last value counts in JSON."""

    names: frozenset[str] = frozenset()


def read_json(path: Path, columns: Sequence[str]) -> pa.Table:
    """The rows of a JSON file, a column for each key that is not doubled.

    Args:
        path: The file.
        columns: Those that are used.

    Raises:
        DataError: If one of `columns` stands twice in a row.
        ValueError: If it is no JSON, or has no rows.
    """
    rows = _rows(_values(decoded(path)), columns)
    doubled: set[str] = set()
    names: dict[str, None] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} is a {type(row).__name__}, not an object. {FORMS}")
        names.update(dict.fromkeys(row))
        if isinstance(row, _Doubled):
            doubled |= row.names
        for name in columns:
            if name in doubled or _is_doubled(row.get(name)):
                raise DataError(
                    f"{path} has the key {name!r} or one below it twice in row {i}."
                )
    once = [name for name in names if name not in doubled]
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in once})


def _values(text: str) -> list[Any]:
    """The JSON values that stand one behind the other, on a line each or on several."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    values, place = [], 0
    while (start := BETWEEN.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, place = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            last = start + len(text[start : error.pos].rstrip())
            line = text.count("\n", 0, last) + 1
            raise ValueError(f"line {line} is not JSON ({error})") from error
        values.append(value)
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    doubled = _Doubled(found)
    doubled.names = frozenset(name for name in found if names.count(name) > 1)
    return doubled


def _is_doubled(value: Any) -> bool:
    if isinstance(value, _Doubled):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list) and any(map(_is_doubled, parts))


def _rows(values: list[Any], columns: Sequence[str]) -> list[Any]:
    """The rows, whatever usual form they have."""
    if len(values) == 1 and isinstance(values[0], list):
        return list(values[0])
    if len(values) != 1 or not isinstance(values[0], dict):
        return values
    (value,) = values
    if columns and set(columns) <= value.keys():
        return _transposed(value)
    if _is_split(value):  # as pandas writes it: names apart from values
        return [dict(zip(value["columns"], row, strict=True)) for row in value["data"]]
    lists = [key for key, part in value.items() if _has_rows(part)]
    if len(lists) > 1:
        raise ValueError(
            f"it has a list of rows under each of {', '.join(lists)}; write one file for each"
        )
    if lists:
        return list(value[lists[0]])
    parts = list(value.values())
    if parts and all(isinstance(part, dict) for part in parts) and not _is_index(value):
        named = bool(columns) and all(set(columns) <= part.keys() for part in parts)
        if named or all(key.isdigit() for key in value):
            return parts  # a mapping from a row's name to the row
    return _transposed(value)


def _transposed(value: Mapping[str, Any]) -> list[Any]:
    """Rows of a mapping of columns, which are lists or, as pandas writes them, mappings."""
    if _is_table(value):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if _is_index(value):
        numbers = list(next(iter(value.values())))
        return [{name: value[name][i] for name in value} for i in numbers]
    return [value]


def _is_table(value: Mapping[str, Any]) -> bool:
    """Whether it is a mapping from column to list.

    Raises:
        ValueError: If the lists are not of one length.
    """
    if not value or not all(isinstance(part, list) for part in value.values()):
        return False
    if len({len(part) for part in value.values()}) > 1:
        lengths = ", ".join(f"{name} {len(part):,}" for name, part in value.items())
        raise ValueError(f"its columns differ in length: {lengths}")
    return True


def _is_index(value: Mapping[str, Any]) -> bool:
    """Whether it is a mapping from column to a mapping from the number of a row to a value."""
    parts = list(value.values())
    return (
        bool(parts)
        and all(isinstance(part, dict) and part for part in parts)
        and all(key.isdigit() for key in parts[0])
        and all(part.keys() == parts[0].keys() for part in parts)
        and not all(key.isdigit() for key in value)
    )


def _is_split(value: Mapping[str, Any]) -> bool:
    names, data = value.get("columns"), value.get("data")
    return (
        isinstance(names, list)
        and isinstance(data, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) and len(row) == len(names) for row in data)
    )


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _array(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError as error:
        raise ValueError(f"column {name!r} has a whole number beyond 64 bits") from error
    except pa.ArrowException as error:
        kinds = {type(v).__name__: i for i, v in reversed(list(enumerate(values)))}
        kinds.pop("NoneType", None)
        listed = ", ".join(f"{kind} in row {i}" for kind, i in kinds.items())
        raise ValueError(f"column {name!r} mixes types: {listed}") from error
