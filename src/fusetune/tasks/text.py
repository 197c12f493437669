"""What tasks with one or two texts and one label per row have in common."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from fusetune.errors import DataError, RecipeError, alike
from fusetune.objective import LOSS, Objective
from fusetune.tasks import metrics as registry
from fusetune.tasks.encoding import fingerprint, mixed, tokenise
from fusetune.tasks.prompts import text_column
from fusetune.tasks.splitting import LABELLED_TEST_HINT, Part, Splitting, shared_texts
from fusetune.tasks.task import Batch, Collate, Encoded, Outputs, Split, SplitName

PAD_TO = 8  # a multiple that tensor cores and vector units like
UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30


class TextTask(ABC):
    """One or two text columns in, one label per row; the head is `…ForSequenceClassification`.

    A concrete task says how labels are read, what the head looks like and what its loss is.

    Args:
        name: In reports and results.
        data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
        text: One or two columns that hold the texts.
        label: The column that holds the label.
        metrics: Names of metrics; the first is the primary one.
        splitting: How validation and test are made; as they are by default.
        base: Folder that relative paths in `data` start from.
        drop: Whether rows without a label are left out; they are refused otherwise.
        csv: How CSV and TSV files are written; fields of `CsvOptions`.

    Raises:
        RecipeError: If a metric is unknown or not one of this kind, or the number of text
            columns is not one or two. What is wrong with the data shows when it is read.
    """

    kind: ClassVar[str]
    one_call = True

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
    ) -> None:
        if not 1 <= len(text) <= 2 or len(set(text)) != len(text):
            raise RecipeError(f"text is one or two different columns; got {list(text)}.")
        self.name = name
        self.data = data
        self.text = tuple(text)
        self.label = label
        self.metrics = _chosen(metrics, self.kind)
        self.objectives = (LOSS, *(Objective(m.name, m.direction) for m in self.metrics))
        self._splitting = splitting or Splitting()
        self._base = base
        self._drop = drop
        self._csv = csv
        self._dropped: tuple[str, ...] = ()
        self._truncated: dict[SplitName, str] = {}

    @abstractmethod
    def _read_labels(self, parts: Mapping[SplitName, Part]) -> dict[SplitName, list[Any]]:
        """Every row's label, None where it has none; raises DataError if it is no label."""

    @abstractmethod
    def _targets(
        self, parts: Mapping[SplitName, Part], labels: Mapping[SplitName, Sequence[Any]]
    ) -> dict[SplitName, NDArray[Any]]:
        """Labels as numbers, `n` each, none missing; raises DataError if they do not fit."""

    @abstractmethod
    def _head(self) -> dict[str, Any]:
        """Config values of the head; `splits` has been read."""

    @abstractmethod
    def draw(self, logits: Tensor, generator: Generator) -> Tensor:
        """A label for each example, `n`, from the distribution whose −log is the loss."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The training loss of each example.

        Args:
            logits: `n x c`, float32.
            labels: `n`.

        Returns:
            `n`, float32, differentiable; its mean is the loss that the model trains with.
        """

    @functools.cached_property
    def splits(self) -> Mapping[SplitName, Split]:
        """Train, validation and test rows; read once, then kept.

        Raises:
            DataError: If the data set cannot be read or does not fit the task.
        """
        columns = (*self.text, self.label)
        parts = self._splitting.read(self.data, base=self._base, columns=columns, csv=self._csv)
        for name, part in parts.items():
            for column in columns:
                self._require(name, part, column)
        texts, labels = {}, self._read_labels(parts)
        notes = []
        for name, part in parts.items():
            kept = [i for i, label in enumerate(labels[name]) if label is not None]
            if len(kept) < len(labels[name]):
                notes.append(self._without_label(name, part, labels[name], kept))
                parts[name] = part.select(kept)
                labels[name] = [labels[name][i] for i in kept]
            read = [text_column(parts[name], column) for column in self.text]
            texts[name] = tuple(zip(*read, strict=True))
        self._dropped = tuple(notes)
        targets = self._targets(parts, labels)
        return {
            name: Split(texts[name], targets[name], fingerprint(texts[name], targets[name]))
            for name in parts
        }

    def _without_label(
        self, split: SplitName, part: Part, labels: Sequence[Any], kept: Sequence[int]
    ) -> str:
        """A note about rows that are left out.

        Raises:
            DataError: If no row is kept, or none may be left out.
        """
        number, total = len(labels) - len(kept), len(labels)
        if not kept:
            raise unlabelled(split, part, self.label)
        if not self._drop:
            first = next(i for i, label in enumerate(labels) if label is None)
            value = part.rows[self.label][first]
            found = "missing" if value in (None, "") else value
            raise DataError(
                f"{number:,} of {total:,} {split} rows have no label: {self.label!r} is "
                f"{found} in {part.where(first)}.",
                hint="Set task.options.drop to true to leave such rows out.",
            )
        return f"{number:,} of {total:,} {split} rows have no label and were left out."

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings: shared texts, rows left out, and texts cut by `encode` so far."""
        shared = self._shared
        return (*shared, *self._dropped, *self._truncated.values())

    @property
    def about(self) -> dict[str, str]:
        """Metric → what it is about."""
        return {m.name: self._about(registry.ABOUT[m.name]) for m in self.metrics}

    def _about(self, text: str) -> str:
        """What is said of a metric, filled in from the data."""
        return text

    @functools.cached_property
    def _shared(self) -> tuple[str, ...]:
        return shared_texts({name: split.texts for name, split in self.splits.items()})

    def build(self, path: str, **options: Any) -> nn.Module:
        """The pretrained model at `path` with this task's head, labels in its config.

        A new head is drawn from torch's global generator: seed it before. `options` go to
        `from_pretrained`.
        """
        _ = self.splits
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            path, **self._head(), **options
        )
        return model

    def encode(
        self, split: SplitName, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """The split as model inputs, cut at `max_length` or at the tokenizer's own limit.

        The smaller of the two counts. How many texts were cut stands in `notes`.
        """
        rows = self.splits[split]
        limit = min(max_length or UNLIMITED, tokenizer.model_max_length)
        inputs, cut = tokenise(rows.texts, tokenizer, limit)
        if cut:
            self._truncated[split] = (
                f"{cut:,} of {len(rows):,} {split} texts were cut to {limit} tokens."
            )
        else:
            self._truncated.pop(split, None)
        features = tuple(
            {**feature, "labels": label}
            for feature, label in zip(inputs, rows.labels.tolist(), strict=True)
        )
        return Encoded(features, rows.labels, mixed(rows.fingerprint, inputs))

    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """Pads to the longest of the batch, rounded up to a multiple of 8 where that fits."""
        fits = tokenizer.model_max_length % PAD_TO == 0
        return _Collator(
            DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO if fits else None)
        )

    def logits(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """float32 predictions, `b x c`; the labels are not shown to the model.

        A function of the model's tensors and the batch alone, also under `torch.func`.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits.float()
        return logits

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Loss and float32 logits of each example; the labels are not shown to the model."""
        logits = self.logits(model, batch)
        losses = self.losses(logits, batch["labels"])
        return Outputs(losses.cpu().numpy(), logits.cpu().numpy())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, as in training, with a graph behind it."""
        return self.losses(self.logits(model, batch), batch["labels"]).mean()

    def with_drawn_labels(
        self, model: nn.Module, batch: Batch, generator: Generator
    ) -> dict[str, Tensor]:
        """The batch with labels drawn from what the model predicts; see `Task`."""
        with torch.no_grad():
            drawn = self.draw(self.logits(model, batch).cpu(), generator)
        labels = batch["labels"]
        return {**batch, "labels": drawn.to(labels.device, labels.dtype)}

    def score(self, outputs: Outputs, labels: NDArray[Any]) -> dict[str, float]:
        """Mean loss and every metric over a whole split."""
        values = {LOSS.name: float(outputs.loss.mean(dtype=np.float64))}
        for metric in self.metrics:
            values[metric.name] = metric.value(outputs.predictions, labels)
        return values

    @torch.no_grad()
    def score_many(
        self, predictions: NDArray[np.float32], labels: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Mean loss and every metric of B models' predictions, `B x n x c`."""
        number, n, width = predictions.shape
        logits = torch.from_numpy(np.ascontiguousarray(predictions)).view(number * n, width)
        losses = self.losses(logits, torch.from_numpy(labels).repeat(number)).view(number, n)
        values = {LOSS.name: losses.mean(dim=1, dtype=torch.float64).numpy()}
        for metric in self.metrics:
            values[metric.name] = metric.batched(predictions, labels)
        return values

    def smooth(
        self, predictions: NDArray[np.float32], labels: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """The smoothed primary metric of B models' predictions, `B x n x c`; `B` values.

        None where the metric has no smoothed form (`metrics.Metric.smooth`).
        """
        return self.metrics[0].smooth(predictions, labels)

    def resample(
        self, outputs: Outputs, labels: NDArray[Any], counts: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Mean loss and every metric on B bootstrap samples, `counts` is `B x n`."""
        counts = counts.astype(np.float64)
        values = {LOSS.name: counts @ outputs.loss.astype(np.float64) / counts.sum(axis=1)}
        for metric in self.metrics:
            values[metric.name] = metric.resampled(outputs.predictions, labels, counts)
        return values

    def _require(self, split: SplitName, part: Part, name: str) -> None:
        there = part.rows.column_names
        if name in there:
            return
        hint = "Set task.text and task.label to columns that are there."
        if len(there) == 1 and part.untyped:
            hint = (
                "If these are several, name their separator: task.options.csv: {separator: …}."
            )
        raise DataError(
            f"The {split} split has no column {name!r}{alike(name, there)}; "
            f"it has {', '.join(there)}.",
            hint=hint,
        )


@dataclass(frozen=True, slots=True)
class _Collator:
    """The library's collator, with a plain dictionary for a result; can be pickled."""

    pad: DataCollatorWithPadding

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return dict(self.pad([dict(feature) for feature in features]))


def unlabelled(split: SplitName, part: Part, label: str) -> DataError:
    """What to say of a split whose labels are all -1 or missing."""
    source = part.source
    return DataError(
        f"The {split} split has no labels: {label!r} is -1 or missing in all rows of {source}.",
        hint=LABELLED_TEST_HINT if split == "test" else "",
    )


def _chosen(names: Sequence[str], kind: str) -> tuple[registry.Metric, ...]:
    chosen = tuple(registry.find(name, kind) for name in names)
    if not chosen or len(set(names)) != len(names):
        raise RecipeError(f"metrics must be one or more different names; got {list(names)}.")
    return chosen
