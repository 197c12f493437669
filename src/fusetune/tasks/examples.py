"""Rows → examples of a generation task: prompts, references, and rules for what is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import DataError
from fusetune.tasks.encoding import fingerprint
from fusetune.tasks.prompts import PromptTemplate, grouped, references
from fusetune.tasks.splitting import LABELLED_TEST_HINT, Part
from fusetune.tasks.task import Split, SplitName

EmptyReferences = Literal["refuse", "drop"]


class Reading(Protocol):
    """How rows become examples of a task whose models answer with a text."""

    @property
    def columns(self) -> set[str]:
        """The columns that are read."""
        ...

    def splits(
        self, parts: Mapping[SplitName, Part]
    ) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
        """The examples of each split, prompts as texts and references as labels, and notes."""
        ...

    def targets(self, split: Split) -> list[str]:
        """The text that each example teaches, `n`."""
        ...


@dataclass(frozen=True, slots=True)
class Examples:
    """How rows become examples.

    Attributes:
        prompt: Template of the prompt.
        reference: Column of the reference or references, or the path into it.
        group: Whether rows of validation and test that have the same prompt become one
            example with several references.
        no_answer: What is taught where a row has no reference, as "unanswerable"; None if
            every row must have one.
        empty: What happens to rows without a reference where `no_answer` is None.
    """

    prompt: PromptTemplate
    reference: str
    group: bool = False
    no_answer: str | None = None
    empty: EmptyReferences = "refuse"

    @property
    def columns(self) -> set[str]:
        """The columns that are read."""
        return {*self.prompt.fields, self.reference.split(".")[0]}

    def splits(
        self, parts: Mapping[SplitName, Part]
    ) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
        """The examples of each split, and notes about rows that were left out.

        Raises:
            DataError: If a field is missing, or a split has no references, or a row has
                none and that is refused.
        """
        found: dict[SplitName, Split] = {}
        notes = []
        for name, part in parts.items():
            prompts, golds = self.prompt.prompts(part), references(part, self.reference)
            notes += self.prompt.empty(part)
            if self.no_answer is None:
                kept = [i for i, texts in enumerate(golds) if texts]
                if len(kept) < len(golds):
                    self._require(name, part, golds, kept)
                    notes.append(
                        f"{len(golds) - len(kept):,} of {len(golds):,} {name} rows have no "
                        "reference and were left out."
                    )
                    prompts, golds = [prompts[i] for i in kept], [golds[i] for i in kept]
            if self.group and name != "train":
                prompts, golds = grouped(prompts, golds)
            found[name] = split_of(prompts, golds)
        return found, tuple(notes)

    def targets(self, split: Split) -> list[str]:
        """The text that each example teaches, `n`: its first reference, or `no_answer`."""
        return [golds[0] if golds else self.no_answer or "" for golds in split.labels]

    def _require(
        self, name: SplitName, part: Part, golds: Sequence[tuple[str, ...]], kept: list[int]
    ) -> None:
        """Refuse rows without references, unless they may be dropped and others are left."""
        if not kept:
            raise DataError(
                f"The {name} split has no references: {self.reference!r} is empty in all "
                f"{len(golds):,} rows of {part.source}.",
                hint=LABELLED_TEST_HINT if name == "test" else "",
            )
        if self.empty == "refuse":
            first = next(i for i, texts in enumerate(golds) if not texts)
            raise DataError(
                f"{len(golds) - len(kept):,} of {len(golds):,} {name} rows have no reference: "
                f"{self.reference!r} is empty, first in {part.where(first)}.",
                hint="Set task.options.empty_references to drop, or task.options.no_answer to "
                "the text that is to be said there.",
            )


def split_of(prompts: Sequence[str], golds: Sequence[tuple[str, ...]]) -> Split:
    """A split whose labels are tuples of references, `n`, objects."""
    labels: NDArray[Any] = np.empty(len(golds), dtype=object)
    for i, texts in enumerate(golds):
        labels[i] = texts
    inputs = tuple((prompt,) for prompt in prompts)
    whole = [(prompt, *refs) for prompt, refs in zip(prompts, golds, strict=True)]
    return Split(inputs, labels, fingerprint(whole, np.empty(0)))
