"""Sequence classification and regression: a label or a number for one or two texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusetune.errors import DataError, RecipeError, alike
from fusetune.tasks import metrics as registry
from fusetune.tasks.splitting import Part, Splitting
from fusetune.tasks.task import SplitName, Task
from fusetune.tasks.text import TextTask, unlabelled

UNLABELLED = "-1"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


class SequenceClassification(TextTask):
    """One of two or more labels per row; cross entropy.

    Labels may be texts, whole numbers, booleans or `datasets.ClassLabel`. Class ids follow
    `labels` where they are given, else the names of a `ClassLabel`, else the labels that train
    has, sorted (numbers as numbers). A label is known by its name alone: the numbers 1 and 1.0
    and the text "1" are one label. A text is its own name, and all of CSV is texts: there 1
    and 1.0 are two.

    A label that is missing is none, and so is -1: of a `ClassLabel`, and beside other labels
    than -1 and 1 where no other is negative. Whether the latter is meant is asked, by an error.

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
        drop: bool = False,
        csv: Mapping[str, Any] | None = None,
        positive: str | int | bool | None = None,
        labels: Sequence[str | int | bool] | None = None,
    ) -> None:
        super().__init__(
            name,
            data,
            text=text,
            label=label,
            metrics=metrics,
            splitting=splitting,
            base=base,
            drop=drop,
            csv=csv,
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

    def _read_labels(self, parts: Mapping[SplitName, Part]) -> dict[SplitName, list[Any]]:
        named = {split: self._read_names(part) for split, part in parts.items()}
        if self._given is None and "train" not in named:
            raise DataError(
                "Without a train split nothing says which label has which class id.",
                hint="Set task.options.labels to the names in the order of the class ids.",
            )
        known = set(named["train"] if self._given is None else self._given) - {None}
        if self._given is None and UNLABELLED in known:
            if self._is_label(parts["train"], known):
                return named
            known.discard(UNLABELLED)
        if UNLABELLED in known:
            return named
        if len(known) == 1:
            raise DataError(
                f"Classification needs two or more labels; {self.label!r} is "
                f"{next(iter(known))!r} in all {len(named['train']):,} rows of train."
            )
        if known:  # else train has no labels, which is said of it
            self._check_names(parts, named, known)
        return {
            s: [None if n == UNLABELLED else n for n in names] for s, names in named.items()
        }

    def _is_label(self, train: Part, known: set[Any]) -> bool:
        """Whether -1 is one of train's labels.

        Raises:
            DataError: If it may be the sign of a row without one.
        """
        others = known - {UNLABELLED}
        if isinstance(train.rows.features[self.label], datasets.ClassLabel):
            return True  # the name of a class; -1 itself is none
        if others == {"1"} or any(re.fullmatch(r"-\d+", name) for name in others):
            return True
        if others and not self._drop:
            names = ", ".join(f"'{name}'" for name in _sorted(known, train.untyped))
            raise DataError(
                f"{self.label!r} is -1 in train, beside {', '.join(sorted(others)[:20])}: is "
                "that a label, or does it say that there is none?",
                hint="Set task.options.drop to true to leave these rows out, or "
                f"task.options.labels to [{names}] to have it as a label.",
            )
        return False

    def _targets(
        self, parts: Mapping[SplitName, Part], labels: Mapping[SplitName, Sequence[Any]]
    ) -> dict[SplitName, NDArray[Any]]:
        if self._given is not None:
            self._names = self._given
        else:
            feature, train = parts["train"].rows.features[self.label], labels["train"]
            self._names = (
                tuple(feature.names)
                if isinstance(feature, datasets.ClassLabel)
                else _sorted(set(train), parts["train"].untyped)
            )
        self._check_names(parts, labels, set(self._given or labels["train"]))
        self._use_positive()
        ids = {name: i for i, name in enumerate(self._names)}
        return {
            split: np.array([ids[name] for name in names], dtype=np.int64)
            for split, names in labels.items()
        }

    def _read_names(self, part: Part) -> list[str | None]:
        values = list(part.rows[self.label][:])
        feature = part.rows.features[self.label]
        if isinstance(feature, datasets.ClassLabel):
            return [
                feature.names[value] if value is not None and value >= 0 else None
                for value in values
            ]
        return [_name(value, self.label, part, i) for i, value in enumerate(values)]

    def _check_names(
        self,
        parts: Mapping[SplitName, Part],
        named: Mapping[SplitName, Sequence[str | None]],
        known: set[Any],
    ) -> None:
        """Refuse labels that are not known; -1 alone is left to what is said of no label."""
        lacking, of_them = (
            ("train lacks", "Train has")
            if self._given is None
            else ("the model lacks", "task.options.labels has")
        )
        for split, names in named.items():
            strange = Counter(name for name in names if name not in known and name is not None)
            if strange.keys() - {UNLABELLED}:
                listed = ", ".join(
                    f"{name!r} ({n:,} rows){alike(name, known)}"
                    for name, n in strange.most_common(10)
                )
                first = next(i for i, name in enumerate(names) if name in strange)
                names_known = self._given or _sorted(known, parts[split].untyped)
                raise DataError(
                    f"The {split} split has labels that {lacking}: {listed}, first in "
                    f"{parts[split].where(first)}. {of_them} "
                    f"{', '.join(map(repr, names_known[:20]))}."
                )

    def _about(self, text: str) -> str:
        _ = self.splits
        names = self._names
        place = 1 if self._positive is None else names.index(canonical(self._positive))
        told = {"positive": names[place], "other": names[place - 1]}  # used of two labels alone
        return text.format(classes=len(names), **told)

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
                f"The positive label {name!r} is not in the data, which has "
                f"{', '.join(map(repr, self._names))}{alike(name, self._names)}."
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

    def _read_labels(self, parts: Mapping[SplitName, Part]) -> dict[SplitName, list[Any]]:
        columns = {split: list(part.rows[self.label][:]) for split, part in parts.items()}
        texts = [v for part in columns.values() for v in part if isinstance(v, str) and v]
        comma = has_decimal_comma(texts)
        labels: dict[SplitName, list[Any]] = {}
        for split, part in parts.items():
            values = columns[split]
            if all(_no_number(value) or value in (-1, "-1") for value in values):
                raise unlabelled(split, part, self.label)
            labels[split] = [
                None if _no_number(value) else _number(value, self.label, part, i, comma)
                for i, value in enumerate(values)
            ]
        return labels

    def _targets(
        self, parts: Mapping[SplitName, Part], labels: Mapping[SplitName, Sequence[Any]]
    ) -> dict[SplitName, NDArray[Any]]:
        return {split: np.array(v, dtype=np.float64) for split, v in labels.items()}


def _sorted(names: set[Any], untyped: bool) -> tuple[str, ...]:
    """Labels in the order of their class ids: numbers as numbers, else as texts.

    Of texts that are one number, as 7 and 007, the order is that of texts.
    """
    number: Any = float if untyped and all(map(NUMBER.fullmatch, names)) else int
    try:
        return tuple(sorted(names, key=lambda name: (number(name), name)))
    except ValueError:
        return tuple(sorted(names))


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


def _no_number(value: Any) -> bool:
    """Whether a number is missing, as pandas has it too."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, label: str, part: Part, row: int, comma: bool) -> float:
    if part.untyped and isinstance(value, str):
        text = value.strip().replace(",", ".") if comma else value.strip()
        if NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
    elif (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ):
        return float(value)
    raise DataError(
        f"Labels of a regression are finite numbers; {label!r} is {value!r} in "
        f"{part.where(row)}.",
        hint="Write numbers with a decimal point and no sign between thousands."
        if isinstance(value, str) and "," in value
        else "",
    )


def has_decimal_comma(texts: Sequence[str]) -> bool:
    """Whether numbers are written as in 0,75 beyond doubt: 1,234 may be a thousand and more."""
    texts = [text.strip() for text in texts]
    commas = [text for text in texts if "," in text]
    plain = all(re.fullmatch(r"[-+]?\d+(,\d+)?", text, re.ASCII) for text in texts)
    thousands = all(re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text) for text in commas)
    return plain and not thousands


KINDS: Mapping[str, Callable[..., Task]] = {
    SequenceClassification.kind: SequenceClassification,
    Regression.kind: Regression,
}
