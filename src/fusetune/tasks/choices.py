"""Rows → questions with options: which there are, and which one is right."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.errors import DataError
from fusetune.tasks.examples import split_of
from fusetune.tasks.prompts import PromptTemplate, require_columns
from fusetune.tasks.splitting import LABELLED_TEST_HINT, Part
from fusetune.tasks.task import Split, SplitName

Reader = Callable[[Any, Sequence[Any]], int | None]
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
        for part in parts.values():
            require_columns(part, self.columns, "task")
        kinds = self._kinds(parts)
        for name, part in parts.items():
            prompts = self.prompt.prompts(part)
            notes += self.prompt.empty(part)
            rows = self._options(part, kinds)
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

    def _questions(self, part: Part) -> list[tuple[list[Any], Any]]:
        """Options and answer of each row, as they stand there."""
        rows = part.rows.select_columns(sorted({self.reference, *self.options}))
        return [
            (self._listed(row, part, i), _single(row[self.reference]))
            for i, row in enumerate(rows)
        ]

    def _kinds(self, parts: Mapping[SplitName, Part]) -> tuple[Reader, ...]:
        """How answers are read: in one way if one fits those of all splits, else in each.

        A number in a CSV file is a text like others: it is a place before it is an option's
        text. Elsewhere a number is a place, and a text is none unless nothing else fits.
        """
        usual = (_by_number, _by_text, _by_letter)
        untyped = any(part.untyped for part in parts.values())
        kinds = (_by_number, _by_digits, *usual[1:]) if untyped else (*usual, _by_digits)
        known = [
            {kind for kind in kinds if kind(answer, options) is not None}
            for part in parts.values()
            for options, answer in self._questions(part)
        ]
        meant = [fitting for fitting in known if fitting]
        always = [kind for kind in kinds if meant and all(kind in f for f in meant)]
        return tuple(always[:1]) or usual

    def _options(
        self, part: Part, kinds: Sequence[Reader]
    ) -> list[tuple[tuple[str, ...], int | None]]:
        """What the model may answer, and the place of the right answer; None without one."""
        found = []
        for options, answer in self._questions(part):
            there = [j for j, text in enumerate(options) if text is not None and text != ""]
            places = (kind(answer, options) for kind in kinds)
            place = next((place for place in places if place is not None), None)
            right = there.index(place) if place in there else None
            said = [LETTERS[j] if self.letters else str(options[j]) for j in there]
            found.append((tuple(said), right))
        return found

    def _listed(self, row: Mapping[str, Any], part: Part, i: int) -> list[Any]:
        """The options of a row, empty ones included."""
        values = [row[column] for column in self.options]
        listed = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        number = sum(text is not None and text != "" for text in listed)
        if number < 2 or len(listed) > len(LETTERS):
            raise DataError(
                f"A question has 2 to {len(LETTERS)} options; {part.where(i)} has {number}."
            )
        return list(listed)

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


def _single(answer: Any) -> Any:
    """The answer, out of a list that has no other."""
    if isinstance(answer, list):
        return answer[0] if len(answer) == 1 else None
    return answer


def _by_number(answer: Any, options: Sequence[Any]) -> int | None:
    if isinstance(answer, float) and answer.is_integer():  # whole numbers beside missing ones
        answer = int(answer)
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    return answer if whole and 0 <= answer < len(options) else None


def _by_digits(answer: Any, options: Sequence[Any]) -> int | None:
    digits = isinstance(answer, str) and re.fullmatch(r"0|[1-9]\d?", answer.strip(), re.ASCII)
    return _by_number(int(answer), options) if digits else None


def _by_text(answer: Any, options: Sequence[Any]) -> int | None:
    """The one option that is the answer; a number among the options is one by its digits."""
    there = isinstance(answer, str) and answer != ""
    places = [j for j, option in enumerate(options) if there and str(option) == answer]
    return places[0] if len(places) == 1 else None


def _by_letter(answer: Any, options: Sequence[Any]) -> int | None:
    letter = answer.strip().upper() if isinstance(answer, str) else ""
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < len(options) else None
