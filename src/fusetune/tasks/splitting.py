"""Which rows train, which choose, which report: the papers' splitting, and shared texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from fusetune.errors import DataError
from fusetune.tasks.data import ALIASES, SPLITS, Rows, is_untyped, read
from fusetune.tasks.files.delimited import CsvOptions
from fusetune.tasks.task import SplitName

LABELLED_TEST_HINT = (
    "Make a labelled test split: split: {halve: validation}, or split: {hold_out: 1000}."
)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one split, and where they come from.

    Attributes:
        rows: n rows.
        source: The official split that they were taken from.
        index: `n` int64; the number of each row in that split, from 0.
    """

    rows: datasets.Dataset
    source: SplitName
    index: NDArray[np.int64]

    @property
    def untyped(self) -> bool:
        """Whether the rows come from CSV or TSV, where a number is a text like others."""
        return is_untyped(self.rows)

    def select(self, rows: Sequence[int]) -> Part:
        """Some of the rows."""
        return Part(self.rows.select(rows), self.source, self.index[list(rows)])

    def where(self, row: int) -> str:
        """Names a row so that a user finds it in the file."""
        return f"row {self.index[row]} of {self.source} (counted from 0)"


@dataclass(frozen=True, slots=True)
class Splitting:
    """How validation and test are made; without arguments they stay as they are.

    Attributes:
        halve: The official split ("validation" or "test") that is shuffled; the first
            floor(n / 2) rows become validation, the others test. The split that it replaces
            is set aside (GLUE's test splits have no labels).
        hold_out: That many training rows, drawn at random, become validation; the official
            validation split becomes test (the official test split stays it where there is
            no validation split).
        seed: Of the shuffle. One seed, one splitting: runs that differ in their training
            seed alone can share it.
        trains: Whether a train split is needed; where nothing trains it may be absent.

    Raises:
        DataError: If both are given, or either is impossible.
    """

    halve: SplitName | None = None
    hold_out: int | None = None
    seed: int = 0
    trains: bool = True

    def __post_init__(self) -> None:
        if self.halve is not None and self.hold_out is not None:
            raise DataError(
                f"A splitting either halves a split or holds rows out; got halve: "
                f"{self.halve} and hold_out: {self.hold_out}."
            )
        if self.halve not in (None, "validation", "test"):
            raise DataError(f"Only validation or test can be halved; got {self.halve!r}.")
        if self.hold_out is not None and self.hold_out < 1:
            raise DataError(f"hold_out must be at least 1; got {self.hold_out}.")

    def read(
        self,
        data: str | Mapping[str, str],
        *,
        base: Path | None,
        columns: Sequence[str],
        csv: Mapping[str, Any] | None,
    ) -> dict[SplitName, Part]:
        """The rows of a data set as this splitting divides them.

        Args:
            data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
            base: Folder that relative paths start from.
            columns: Those that are used.
            csv: Fields of `CsvOptions`.

        Raises:
            DataError: If the data cannot be read or divided so.
            RecipeError: If `csv` makes no sense.
        """
        options = CsvOptions.of(csv)
        rows = read(data, base=base, columns=columns, csv=options, train=self.trains)
        return self.apply(rows)

    def apply(self, rows: Mapping[SplitName, datasets.Dataset]) -> dict[SplitName, Part]:
        """Train (if it is there or needed), validation and test; no row is in two of them.

        Raises:
            DataError: If a split that is needed is not there or has too few rows.
        """
        others = rows.others if isinstance(rows, Rows) else ()
        parts = {name: _part(name, split) for name, split in rows.items()}
        if self.halve is not None:
            parts = self._halved(parts, self.halve)
        if self.hold_out is not None:
            parts = self._held_out(parts, self.hold_out)
        for name in SPLITS:
            if name not in parts and (self.trains or name != "train"):
                raise DataError(
                    f"There is no {name} split; the data set has {', '.join(rows)}.",
                    hint=_hint_of_others(name, others)
                    or (LABELLED_TEST_HINT if name == "test" else _validation_hint(rows)),
                )
        return {name: parts[name] for name in SPLITS if name in parts}

    def _halved(
        self, parts: Mapping[SplitName, Part], source: SplitName
    ) -> dict[SplitName, Part]:
        if source not in parts:
            raise DataError(f"There is no {source} split to halve; got {', '.join(parts)}.")
        rows = parts[source].rows
        if len(rows) < 2:
            raise DataError(f"Halving {source} needs at least 2 rows; it has {len(rows)}.")
        order = np.random.default_rng(self.seed).permutation(len(rows))
        middle = len(rows) // 2
        halves: dict[SplitName, Part] = {
            "validation": _part(source, rows, order[:middle]),
            "test": _part(source, rows, order[middle:]),
        }
        return {"train": parts["train"], **halves} if "train" in parts else halves

    def _held_out(self, parts: Mapping[SplitName, Part], n: int) -> dict[SplitName, Part]:
        if "train" not in parts:
            raise DataError(f"There is no train split to hold out {n} rows from.")
        train = parts["train"].rows
        if n >= len(train):
            raise DataError(
                f"hold_out must leave training rows; got {n}, and train has {len(train)} rows."
            )
        order = np.random.default_rng(self.seed).permutation(len(train))
        made: dict[SplitName, Part] = {
            "train": _part("train", train, np.sort(order[n:])),
            "validation": _part("train", train, order[:n]),
        }
        test = parts.get("validation") or parts.get("test")
        return made if test is None else {**made, "test": test}


def _part(
    source: SplitName, rows: datasets.Dataset, index: NDArray[np.int64] | None = None
) -> Part:
    if index is None:
        return Part(rows, source, np.arange(len(rows)))
    return Part(rows.select(index), source, index)


def _hint_of_others(split: SplitName, others: Sequence[str]) -> str:
    """What to write where several files could be the split, as MNLI's two validation files."""
    near = [name for name in others if ALIASES[re.split("[-_.]", name)[0]] == split]
    if not near:
        return ""
    return (
        f"It also has {', '.join(near)}, which are not called {split}: name the file that is "
        f"meant, data: {{train: FILE, validation: FILE, test: FILE}}."
    )


def _validation_hint(rows: Mapping[SplitName, datasets.Dataset]) -> str:
    also = "split: {halve: test}, or " if "test" in rows else ""
    if "train" not in rows:
        return "Name the file: data: {validation: FILE, test: FILE}."
    return f"Make one: {also}split: {{hold_out: 1000}} takes rows from train."


def shared_texts(
    texts: Mapping[SplitName, Sequence[tuple[str, ...]]],
) -> tuple[str, ...]:
    """A note for each pair of splits in which the same texts stand (leakage).

    A text is the whole tuple of a row's text fields. Rows are counted in the later split.
    A split may be absent.
    """
    notes = []
    there = [name for name in SPLITS if name in texts]
    for earlier, later in itertools.combinations(there, 2):
        known = set(texts[earlier])
        count = sum(text in known for text in texts[later])
        if count:
            notes.append(
                f"{count:,} of {len(texts[later]):,} {later} texts also stand in {earlier}."
            )
    return tuple(notes)


def rows_before(splits: Mapping[SplitName, Sized], split: SplitName) -> int:
    """How many rows stand in the splits before this one, where all are counted through."""
    before = SPLITS[: SPLITS.index(split)]
    return sum(len(splits[name]) for name in before if name in splits)
