"""One file → one table of rows, by extension. Nothing is cached on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusetune.errors import DataError
from fusetune.members.disk import regular


def read_table(path: Path, text: Sequence[str] = ()) -> pa.Table:
    """All rows of a file.

    Args:
        path: A file with an extension of `READERS`.
        text: Columns that stay text where the format itself does not say so.

    Raises:
        DataError: If the extension is unknown or the file cannot be read as what it says.
    """
    if path.suffix not in READERS:
        raise DataError(
            f"{path} has the unknown extension {path.suffix!r}; known are {', '.join(READERS)}."
        )
    try:
        if regular(path).st_size == 0:
            return pa.table({})
        return READERS[path.suffix](path, text)
    except (pa.ArrowException, OSError, RecursionError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}.") from error


def _read_parquet(path: Path, text: Sequence[str]) -> pa.Table:
    return pa.parquet.read_table(path, partitioning=None)


def _read_csv(path: Path, text: Sequence[str]) -> pa.Table:
    return _read_delimited(path, text, delimiter=",", quote_char='"')


def _read_tsv(path: Path, text: Sequence[str]) -> pa.Table:
    """Tab-separated values know no quoting: `"` is a letter like others, as in GLUE's files."""
    return _read_delimited(path, text, delimiter="\t", quote_char=False)


def _read_delimited(
    path: Path, text: Sequence[str], *, delimiter: str, quote_char: str | bool
) -> pa.Table:
    # One block: Arrow takes a column's type from the first block alone.
    block = min(path.stat().st_size + 1, 2**31 - 1)
    return pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=block),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, quote_char=quote_char, newlines_in_values=bool(quote_char)
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in text}
        ),
    )


def _read_json(path: Path, text: Sequence[str]) -> pa.Table:
    """JSON lines, or one array of objects.

    Python's parser, because Arrow's turns strings that look like dates into time stamps.
    """
    content = path.read_text(encoding="utf-8-sig")
    rows = json.loads(content) if content.lstrip().startswith("[") else _json_lines(content)
    columns: dict[str, None] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} is a {type(row).__name__}, not an object")
        columns.update(dict.fromkeys(row))
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in columns})


def _json_lines(content: str) -> list[Any]:
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
    return rows


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


READERS: dict[str, Callable[[Path, Sequence[str]], pa.Table]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}


def first_line(error: BaseException) -> str:
    """What went wrong, without the stack of a library's explanations."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(". ")
