"""Sequence classification and regression: a label or a number for one or two texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusetune.errors import DataError, RecipeError
from fusetune.tasks import metrics as registry
from fusetune.tasks.splitting import Part, Splitting
from fusetune.tasks.task import SplitName, Task
from fusetune.tasks.text import TextTask, unlabelled

UNLABELLED = "-1"


class SequenceClassification(TextTask):
    """One of two or more labels per row; cross entropy.

    Labels may be strings, integers, booleans or `datasets.ClassLabel`. Class ids follow
    `labels` where they are given, else the names of a `ClassLabel`, else the labels that train
    has, sorted (numbers as numbers). A label is known by its name alone: 1, "1" and 1.0 are
    one label.

    A split in which every label is -1 (GLUE's test splits) or missing counts as unlabelled,
    which is an error in a split that is used, unless -1 is one of the labels of train.

    Args:
        positive: The label that `f1` and `soft_f1` are about; class id 1 by default.
        labels: The name of each class id, as a finished model has them; those of train by
            default, which are needed where there is no train split.

    Raises:
        RecipeError: Also if `labels` are not two or more different names.
    """

    kind = registry.CLASSIFICATION
    pipeline_tag = "text-classification"

    def __init__(
        self,
        name: str,
        data: str | Mapping[str, str],
        *,
        text: Sequence[str],
        label: str,
        metrics: Sequence[str],
        splitting: Splitting | None = None,
        base: Path | None = None,
        positive: str | int | bool | None = None,
        labels: Sequence[str | int | bool] | None = None,
    ) -> None:
        super().__init__(
            name, data, text=text, label=label, metrics=metrics, splitting=splitting, base=base
        )
        self._positive = positive
        self._names: tuple[str, ...] = ()
        self._given = None if labels is None else tuple(map(canonical, labels))
        if self._given is not None and len(set(self._given)) < max(2, len(self._given)):
            raise RecipeError(
                f"task.options.labels are two or more different names; got {labels!r}."
            )

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each example, `n`; logits are `n x c`."""
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def draw(self, logits: Tensor, generator: Generator) -> Tensor:
        """A class of each example, `n`, with its softmax probability."""
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        return drawn.squeeze(-1)

    def _head(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self._names)),
            "label2id": {name: i for i, name in enumerate(self._names)},
            "problem_type": "single_label_classification",
        }

    def _read_labels(self, parts: Mapping[SplitName, Part]) -> dict[SplitName, NDArray[Any]]:
        named = {split: self._read_names(split, part) for split, part in parts.items()}
        if self._given is None and "train" not in named:
            raise DataError(
                "Without a train split nothing says which label has which class id.",
                hint="Set task.options.labels to the names in the order of the class ids.",
            )
        known: set[str | None] = set(named["train"] if self._given is None else self._given)
        for split, names in named.items():
            trivial = set(names) <= {None, UNLABELLED}
            if trivial and not (UNLABELLED in known and len(known) > 1):
                raise unlabelled(split, parts[split], self.label)
            if None in names:
                where = parts[split].where(names.index(None))
                raise DataError(f"The label {self.label!r} is missing in {where}.")
        if self._given is None:
            feature = parts["train"].rows.features[self.label]
            self._names = _class_names(feature, named["train"])
        else:
            self._names = self._given
        self._check_names(parts, named, known)
        self._use_positive()
        ids = {name: i for i, name in enumerate(self._names)}
        return {
            split: np.array([ids[str(name)] for name in names], dtype=np.int64)
            for split, names in named.items()
        }

    def _read_names(self, split: SplitName, part: Part) -> list[str | None]:
        values = self._column(split, part, self.label)
        feature = part.rows.features[self.label]
        if isinstance(feature, datasets.ClassLabel):
            return [
                None if value is None else feature.names[value] if value >= 0 else UNLABELLED
                for value in values
            ]
        return [_name(value, self.label, part, i) for i, value in enumerate(values)]

    def _check_names(
        self,
        parts: Mapping[SplitName, Part],
        named: Mapping[SplitName, Sequence[str | None]],
        known: set[str | None],
    ) -> None:
        if len(known) < 2:
            raise DataError(
                f"Classification needs two or more labels; {self.label!r} is "
                f"{next(iter(known))!r} in all {len(named['train']):,} rows of train."
            )
        lacking, of_them = (
            ("train lacks", "Train has")
            if self._given is None
            else ("the model lacks", "task.options.labels has")
        )
        for split, names in named.items():
            strange = Counter(name for name in names if name not in known)
            if strange:
                listed = ", ".join(
                    f"{name!r} ({n:,} rows)" for name, n in strange.most_common(10)
                )
                first = next(i for i, name in enumerate(names) if name in strange)
                raise DataError(
                    f"The {split} split has labels that {lacking}: {listed}, first in "
                    f"{parts[split].where(first)}. {of_them} "
                    f"{', '.join(map(repr, self._names[:20]))}."
                )

    def _use_positive(self) -> None:
        """Settles what `f1` and `soft_f1` are about, now that the labels are known."""
        about_one = [m.name for m in self.metrics if m.name in registry.OF_ONE_CLASS]
        if not about_one:
            return
        if len(self._names) > 2:
            raise DataError(
                f"The metric {about_one[0]} is for two labels; the data has "
                f"{len(self._names)}.",
                hint="Use macro_f1.",
            )
        name = self._names[1] if self._positive is None else canonical(self._positive)
        if name not in self._names:
            raise DataError(
                f"The positive label {self._positive!r} is not in the data, which has "
                f"{', '.join(map(repr, self._names))}."
            )
        positive = self._names.index(name)
        self.metrics = tuple(
            registry.OF_ONE_CLASS[m.name](positive) if m.name in about_one else m
            for m in self.metrics
        )


class Regression(TextTask):
    """One number per row; squared error."""

    kind = registry.REGRESSION
    pipeline_tag = "text-classification"

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error of each example, `n`; logits are `n x 1`."""
        return (logits.squeeze(-1) - labels.float()) ** 2

    def draw(self, logits: Tensor, generator: Generator) -> Tensor:
        """The prediction with Gaussian noise of variance 1/2, whose −log is the square."""
        predicted = logits.squeeze(-1)
        noise = torch.randn(predicted.shape, generator=generator)
        return predicted + math.sqrt(0.5) * noise

    def _head(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def _read_labels(self, parts: Mapping[SplitName, Part]) -> dict[SplitName, NDArray[Any]]:
        labels: dict[SplitName, NDArray[Any]] = {}
        for split, part in parts.items():
            values = self._column(split, part, self.label)
            if all(value is None or value == -1 for value in values):
                raise unlabelled(split, part, self.label)
            labels[split] = np.array(
                [_number(value, self.label, part, i) for i, value in enumerate(values)],
                dtype=np.float64,
            )
        return labels


def _class_names(feature: Any, names: Sequence[str | None]) -> tuple[str, ...]:
    """The name of each class id: as a ClassLabel declares them, else sorted."""
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    distinct = {str(name) for name in names}
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(sorted(distinct))


def canonical(value: str | int | float | bool) -> str:
    """The name by which a label is known, whatever its type in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(int(value))


def _name(value: Any, label: str, part: Part, row: int) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and not value.is_integer():
        raise DataError(
            f"Labels are strings or whole numbers; {label!r} is {value} in {part.where(row)}.",
            hint="For numbers to be predicted, set task.kind to regression.",
        )
    if not isinstance(value, str | int | float):
        raise DataError(
            f"Labels are strings or whole numbers; {label!r} is a {type(value).__name__} in "
            f"{part.where(row)}."
        )
    return canonical(value)


def _number(value: Any, label: str, part: Part, row: int) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    found = "missing" if value is None else repr(value)
    raise DataError(
        f"Labels of a regression are finite numbers; {label!r} is {found} in {part.where(row)}."
    )


KINDS: Mapping[str, Callable[..., Task]] = {
    SequenceClassification.kind: SequenceClassification,
    Regression.kind: Regression,
}
