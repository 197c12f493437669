"""Rows → questions with options: which there are, and which one is right."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.errors import DataError
from fusetune.tasks.examples import split_of
from fusetune.tasks.prompts import PromptTemplate, require_columns
from fusetune.tasks.splitting import LABELLED_TEST_HINT, Part
from fusetune.tasks.task import Split, SplitName

LETTERS = string.ascii_uppercase


@dataclass
class Choices:
    """How rows become questions.

    Args:
        prompt: Template of the prompt.
        reference: Column of the right option: its place, counted from 0, its letter, its
            text, or a list with one of these.
        options: Columns of the options, one each, or one column that holds lists. An option
            that is empty or missing is none.
        letters: Whether the model answers with A, B, …, by the place of an option among all;
            the prompt then shows the options.
        group: Column that says which group a question belongs to, as a profession.
        drop: Whether rows that have not exactly one right option are left out; they are
            refused otherwise.

    Attributes:
        texts: The options of each question of a split, once it is read.
        groups: The group of each question.
    """

    prompt: PromptTemplate
    reference: str
    options: tuple[str, ...]
    letters: bool = False
    group: str | None = None
    drop: bool = False
    texts: dict[SplitName, list[tuple[str, ...]]] = field(default_factory=dict, init=False)
    groups: dict[SplitName, list[str]] = field(default_factory=dict, init=False)

    @property
    def columns(self) -> set[str]:
        """The columns that are read."""
        group = {self.group} if self.group is not None else set()
        return {*self.prompt.fields, self.reference, *self.options, *group}

    def splits(
        self, parts: Mapping[SplitName, Part]
    ) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
        """The questions of each split, and notes about rows that were left out.

        Raises:
            DataError: If a column is missing, a row has fewer than two options, or has not
                exactly one right option and that is refused.
        """
        found: dict[SplitName, Split] = {}
        notes = []
        for name, part in parts.items():
            require_columns(part, self.columns, "task")
            prompts = self.prompt.prompts(part)
            rows = [self._row(row, part, i) for i, row in enumerate(self._rows(part))]
            kept = [i for i, (_, right) in enumerate(rows) if right is not None]
            if len(kept) < len(rows):
                self._require(name, part, rows, kept)
                notes.append(
                    f"{len(rows) - len(kept):,} of {len(rows):,} {name} rows have not "
                    "exactly one right option and were left out."
                )
            self.texts[name] = [rows[i][0] for i in kept]
            groups = part.rows[self.group][:] if self.group is not None else [""] * len(rows)
            self.groups[name] = [str(groups[i]) for i in kept]
            right = [(rows[i][0][rows[i][1] or 0],) for i in kept]
            found[name] = split_of([prompts[i] for i in kept], right)
        return found, tuple(notes)

    def targets(self, split: Split) -> list[str]:
        """The text of the right option of each question, `n`."""
        return [right for (right,) in split.labels]

    def _rows(self, part: Part) -> Any:
        return part.rows.select_columns(sorted({self.reference, *self.options}))

    def _row(
        self, row: Mapping[str, Any], part: Part, i: int
    ) -> tuple[tuple[str, ...], int | None]:
        """What the model may answer, and the place of the right answer; None without one."""
        values = [row[column] for column in self.options]
        listed = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        there = [j for j, text in enumerate(listed) if text is not None and text != ""]
        texts = tuple(str(listed[j]) for j in there)
        if len(texts) < 2 or len(listed) > len(LETTERS):
            raise DataError(
                f"A question has 2 to {len(LETTERS)} options; {part.where(i)} has {len(texts)}."
            )
        place = _place(row[self.reference], listed)
        right = there.index(place) if place in there else None
        return (tuple(LETTERS[j] for j in there) if self.letters else texts), right

    def _require(
        self,
        name: SplitName,
        part: Part,
        rows: Sequence[tuple[tuple[str, ...], int | None]],
        kept: list[int],
    ) -> None:
        """Refuse rows without one right option, unless they may be dropped and others stay."""
        first = next(i for i, (_, right) in enumerate(rows) if right is None)
        if not kept:
            raise DataError(
                f"No row of the {name} split has a right option: {self.reference!r} is "
                f"{part.rows[self.reference][first]!r} in {part.where(first)}.",
                hint=LABELLED_TEST_HINT if name == "test" else "",
            )
        if not self.drop:
            raise DataError(
                f"{len(rows) - len(kept):,} of {len(rows):,} {name} rows have not exactly one "
                f"right option, first {part.where(first)}.",
                hint="Set task.options.drop to true to leave them out.",
            )


def _place(answer: Any, options: Sequence[Any]) -> int | None:
    """The place of the right option among all, empty ones included; None if unclear."""
    if isinstance(answer, list):
        return _place(answer[0], options) if len(answer) == 1 else None
    if isinstance(answer, bool) or answer is None:
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(options) else None
    text = str(answer)
    places = [j for j, option in enumerate(options) if option is not None and option == text]
    if places:
        return places[0] if len(places) == 1 else None
    letter = text.strip().upper()
    found = LETTERS.find(letter) if len(letter) == 1 else -1
    return found if 0 <= found < len(options) else None
