"""Rows of a data set: parquet, JSON lines, CSV or TSV files, or a hub id.

Local files are read afresh each time, straight into memory: nothing is cached on disk, so
a changed file can never give stale rows and a read-only home directory does not matter.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa

from fusetune.errors import DataError
from fusetune.tasks.files import READERS, first_line, read_table
from fusetune.tasks.files.delimited import SEPARATORS, CsvOptions
from fusetune.tasks.task import SplitName

Value = TypeVar("Value")

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
ALIASES: dict[str, SplitName] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
UNTYPED = "csv"  # as datasets calls its reader of such files
LAYOUT_HINT = (
    "Give a folder with train, validation and test files (.parquet, .jsonl, .json, .csv or "
    ".tsv), a mapping from split to file, or a hub id such as nyu-mll/glue:cola."
)
_FILE = re.compile(rf"({'|'.join(ALIASES)})(-\d.*)?")  # train.csv, train-00000-of-00002.parquet
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_OTHER = re.compile(rf"({'|'.join(ALIASES)})[-_.]")  # validation_matched.csv
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/:]+)?")


class Rows(dict[SplitName, datasets.Dataset]):
    """The rows of every split that is there.

    Attributes:
        others: Names of files or of a hub's splits that begin like a split and are none, as
            MNLI's `validation_matched`.
    """

    others: tuple[str, ...] = ()


def read(
    data: str | Mapping[str, str],
    *,
    base: Path | None = None,
    columns: Sequence[str] = (),
    csv: CsvOptions | None = None,
    train: bool = True,
) -> Rows:
    """The rows of every split that is there, as they stand in the source.

    Args:
        data: A folder that holds `train`, `validation` (also `valid`, `val`, `dev`) and `test`
            files, sharded (`train-00000-of-00002.parquet`) or not; a mapping from split to
            file; or a hub id, `name` or `name:config`.
        base: Folder that relative paths start from; the working directory by default.
        columns: Those that are used, none of which may stand twice in a file.
        csv: How CSV and TSV files are written, where they do not say it.
        train: Whether there has to be a train split.

    Returns:
        One data set per split, none of them empty; `train` among them if it has to be.

    Raises:
        DataError: If a file, folder or shard is missing, unreadable or empty, if there is no
            train split and has to be one, or if the hub cannot give the data set.
    """
    start = base or Path()

    def tables(
        files: Mapping[SplitName, Sequence[Path]], where: str, others: Sequence[str] = ()
    ) -> Rows:
        _require_train(files, where, others, train)
        found = {
            s: [read_table(p, columns, csv) for p in files[s]] for s in SPLITS if s in files
        }
        rows = Rows({s: _dataset(parts, s, files[s]) for s, parts in found.items()})
        rows.others = tuple(others)
        return rows

    if not isinstance(data, str):
        return tables(_mapped_files(data, start), "The mapping of data")
    path = start / Path(data).expanduser()
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.is_file())
        return tables(_folder_files(path), str(path), _others(names))
    if path.is_file():
        raise DataError(
            f"{path} is one file, and a data set needs a file for each split.",
            hint=f"Write data: {{train: {data}, validation: …, test: …}}.",
        )
    if _looks_local(data, start):
        raise DataError(f"The folder {path} does not exist.", hint=LAYOUT_HINT)
    return _read_hub(data, train)


def _looks_local(data: str, start: Path) -> bool:
    """Whether a name that does not exist must have been meant as a path."""
    first = Path(data).parts[0] if Path(data).parts else ""
    return (
        data.startswith((".", "/", "~"))
        or not _HUB_ID.fullmatch(data)
        or Path(data).suffix in READERS
        or (start / first).exists()
    )


def canonical_splits(data: Mapping[Any, Value]) -> dict[SplitName, Value]:
    """A mapping from split with the splits' own names in the place of `val`, `dev`, ….

    Raises:
        ValueError: If a name is that of no split, or two are names of one.
    """
    found: dict[SplitName, Value] = {}
    for name, value in data.items():
        if name not in ALIASES:
            raise ValueError(
                f"A split is one of {', '.join(SPLITS)}; got {name!r} (valid, val and dev are "
                "validation)."
            )
        if ALIASES[name] in found:
            raise ValueError(f"{', '.join(data)} name the split {ALIASES[name]} twice.")
        found[ALIASES[name]] = value
    return found


def _mapped_files(data: Mapping[str, str], start: Path) -> dict[SplitName, list[Path]]:
    files: dict[SplitName, list[Path]] = {}
    try:
        splits = canonical_splits(data)
    except ValueError as error:
        raise DataError(str(error)) from error
    for name, file in splits.items():
        path = start / Path(file).expanduser()
        if not path.is_file():
            raise DataError(f"The {name} file {path} does not exist.")
        files[name] = [path]
    return files


def _folder_files(folder: Path) -> dict[SplitName, list[Path]]:
    """The files of each split, shards in the order of their names."""
    files: dict[SplitName, list[Path]] = {}
    unknown: dict[SplitName, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        found = _FILE.fullmatch(path.name.split(".", 1)[0])
        if found is None:
            continue
        split = ALIASES[found[1]]
        if path.suffix not in READERS:
            unknown[split] = path
            continue
        others = files.setdefault(split, [])
        if others and (found[2] is None or others[0].suffix != path.suffix):
            raise DataError(
                f"{folder} has more than one file for {split}: {others[0].name}, {path.name}.",
                hint="Remove one, or name the files: data: {train: FILE, validation: FILE, …}.",
            )
        others.append(path)
    for paths in files.values():
        _require_all_shards(paths)
    for split, path in unknown.items():
        files.setdefault(split, [path])  # a split that only has this file: reading it says why
    return files


def _require_all_shards(paths: Sequence[Path]) -> None:
    """Every file of `train-00000-of-00002` and its like has to be there."""
    found = [match for path in paths if (match := _SHARD.search(path.name))]
    counts = {int(match[2]) for match in found}
    numbers = {int(match[1]) for match in found}
    for count in counts:
        missing = sorted(set(range(count)) - numbers)
        if missing or len(counts) > 1 or len(found) < len(paths):
            raise DataError(
                f"{paths[0].parent} does not have all {count} files of which {paths[0].name} "
                f"is one: it has {', '.join(path.name for path in paths)}."
            )


def _others(names: Iterable[str]) -> list[str]:
    """Names that begin with that of a split, and are none."""
    return [
        name
        for name in names
        if _OTHER.match(name) and not _FILE.fullmatch(name.split(".", 1)[0])
    ]


def _require_train(
    files: Mapping[SplitName, Sequence[Path]], where: str, others: Sequence[str], train: bool
) -> None:
    if not files or (train and "train" not in files):
        listed = [*(f"{s}: {p[0].name}" for s, p in files.items()), *others]
        there = ", ".join(listed) or "no split's file"
        wanted = "train split" if train else "split"
        raise DataError(f"{where} has no {wanted} ({there}).", hint=LAYOUT_HINT)


def _dataset(
    tables: Sequence[pa.Table], split: SplitName, files: Sequence[Path]
) -> datasets.Dataset:
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(
            f"The {len(files)} shards of {split} in {files[0].parent} do not have the same "
            f"columns: {first_line(error)}."
        ) from error
    if table.num_rows == 0:
        raise DataError(f"The {split} split is empty: {files[0]} has no rows.")
    try:
        untyped = files[0].suffix in SEPARATORS
        return plain(datasets.Dataset(table), UNTYPED if untyped else None)
    except Exception as error:  # types, names or metadata that the library cannot take
        names = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
        raise DataError(
            f"{files[0]} has columns that cannot be used: {names}: {first_line(error)}."
        ) from error


def plain(rows: datasets.Dataset, builder: str | None = None) -> datasets.Dataset:
    """The rows as Arrow holds them: no image, sound or document is decoded.

    Files say themselves what their columns are, and a decoded one has methods. Of all that is
    said the names of a `ClassLabel` are kept.

    Args:
        rows: As a library made them.
        builder: What `is_untyped` goes by; that of the rows by default.
    """
    table = rows.with_format("arrow")[:]
    features = datasets.Features.from_arrow_schema(table.schema.remove_metadata())
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            features[name] = feature
    name = builder or rows.info.builder_name
    info = datasets.DatasetInfo(features=features, builder_name=name)
    return datasets.Dataset(table.replace_schema_metadata(None), info=info)


def is_untyped(rows: datasets.Dataset) -> bool:
    """Whether a file's format has texts alone, whatever stands there: CSV and TSV."""
    return bool(rows.info.builder_name == UNTYPED)


def _read_hub(data: str, train: bool) -> Rows:
    path, _, config = data.partition(":")
    try:
        loaded = _load_hub(path, config or None)
    except (
        Exception
    ) as error:  # the library raises whatever the network, a file or a parser did
        raise DataError(
            f"{data!r} is no local folder, and the hub did not give it: {first_line(error)}.",
            hint="Check the name (name or name:config), the network and HF_HUB_OFFLINE, or "
            "give a folder with train, validation and test files.",
        ) from error
    rows = Rows()
    for name, split in loaded.items():
        if name in ALIASES:
            rows.setdefault(ALIASES[name], plain(split))
    rows.others = tuple(_others(map(str, loaded)))
    if not rows or (train and "train" not in rows):
        raise DataError(f"{data} has no train split; it has {', '.join(loaded)}.")
    for name, split in rows.items():
        if len(split) == 0:
            raise DataError(f"The {name} split of {data} is empty.")
    return rows


def _load_hub(path: str, config: str | None) -> datasets.DatasetDict:
    """From the library's cache or the hub; by a temporary folder if there can be no cache."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if writable:
        return datasets.load_dataset(path, config)
    with tempfile.TemporaryDirectory(prefix="fusetune-data-") as folder:
        return datasets.load_dataset(path, config, cache_dir=folder, keep_in_memory=True)
