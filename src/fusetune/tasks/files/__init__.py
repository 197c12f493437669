"""One file → one table of rows, by extension. Nothing is cached on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from fusetune.errors import DataError
from fusetune.files.record import regular
from fusetune.tasks.files.delimited import CsvOptions, read_delimited
from fusetune.tasks.files.json_rows import read_json


def read_table(
    path: Path, columns: Sequence[str] = (), csv: CsvOptions | None = None
) -> pa.Table:
    """All rows of a file, without columns whose name stands twice.

    Args:
        path: A file with an extension of `READERS`.
        columns: Those that are used: none of them may stand there twice.
        csv: How CSV and TSV files are written.

    Raises:
        DataError: If the extension is unknown, the file cannot be read as what it says, or it
            has one of `columns` twice.
    """
    if path.suffix not in READERS:
        raise DataError(
            f"{path} has the unknown extension {path.suffix!r}; known are {', '.join(READERS)}."
        )
    try:
        if regular(path).st_size == 0:
            return pa.table({})
        return READERS[path.suffix](path, columns, csv or CsvOptions())
    except (pa.ArrowException, OSError, RecursionError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}.") from error


def _read_parquet(path: Path, columns: Sequence[str], csv: CsvOptions) -> pa.Table:
    table = pa.parquet.ParquetFile(path).read()
    counts = Counter(table.column_names)
    for name in columns:
        if counts[name] > 1:
            raise DataError(f"{path} has the column {name!r} {counts[name]} times.")
    once = [i for i, name in enumerate(table.column_names) if counts[name] == 1]
    return table.select(once)


def _read_json(path: Path, columns: Sequence[str], csv: CsvOptions) -> pa.Table:
    return read_json(path, columns)


READERS: dict[str, Callable[[Path, Sequence[str], CsvOptions], pa.Table]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
}


def first_line(error: BaseException) -> str:
    """The first line of a library's error, without its explanations."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(". ")
