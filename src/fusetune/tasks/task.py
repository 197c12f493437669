"""What is learned: the protocol that every task follows. It knows nothing of fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerBase

from fusetune.objective import Objective

SplitName = Literal["train", "validation", "test"]
Batch = Mapping[str, Tensor]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]

SIZE = "size"
"""Key of a feature: what the example takes of a batch, where that is not its length."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model said about n examples, in the order of the split.

    Attributes:
        loss: `n`, float32; the model's own training loss of each example.
        predictions: `n x c` float32; logits of c classes, `n x 1` for regression, or the
            columns of a generation task's metrics.
        texts: n generated texts; None where nothing is generated.
        log_probs: n arrays, float32; log p of each token of the example's reference. None
            where examples have no such tokens.
    """

    loss: NDArray[np.float32]
    predictions: NDArray[np.float32]
    texts: tuple[str, ...] | None = None
    log_probs: tuple[NDArray[np.float32], ...] | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def at(self, rows: NDArray[np.int64]) -> Outputs:
        """The outcomes of some examples, in the order of `rows`."""
        return Outputs(
            self.loss[rows],
            self.predictions[rows],
            None if self.texts is None else tuple(self.texts[i] for i in rows),
            None if self.log_probs is None else tuple(self.log_probs[i] for i in rows),
        )


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of one split, read and checked, not yet tokenised.

    Attributes:
        texts: n tuples of one or more text fields.
        labels: `n`; int64 class ids, float64 targets for regression, or tuples of
            reference texts.
        fingerprint: sha256 of texts and labels, for caches and for the report.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: NDArray[Any]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised split; works as the map-style data set that `Trainer` expects.

    Attributes:
        features: n mappings of model inputs (lists of ints), "labels" included.
        labels: `n`, as in `Split`.
        fingerprint: As in `Split`, with the tokenizer's part mixed in.
        budget: How large a batch may be in an evaluation, in the unit of `sizes`; None
            leaves it to the device.
    """

    features: tuple[Mapping[str, Any], ...]
    labels: NDArray[Any]
    fingerprint: str
    budget: int | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.features[index]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`n`; the number of tokens of each example."""
        return np.array([len(f["input_ids"]) for f in self.features], dtype=np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """`n`; what each example takes of a batch, in tokens: new ones count as well."""
        sizes = [f.get(SIZE, len(f["input_ids"])) for f in self.features]
        return np.array(sizes, dtype=np.int64)


class Task(Protocol):
    """A data set, a kind of head, a loss and metrics."""

    name: str
    pipeline_tag: str  # the Hub's name of the kind, such as "text-classification"
    objectives: tuple[Objective, ...]  # loss first, then metrics; [1] is the primary

    @property
    def splits(self) -> Mapping[SplitName, Split]:
        """Train, validation and test rows; read once, then kept."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the data that the report repeats (leakage, dropped rows)."""
        ...

    def build(self, path: str, **options: Any) -> nn.Module:
        """A pretrained model of this task's kind (head included) from `path`."""
        ...

    def encode(
        self, split: SplitName, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """The split as model inputs, tokenised once, cut at `max_length` tokens."""
        ...

    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """A function that pads features into one batch of tensors."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Loss and predictions of each example of a batch that is on the model's device."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean training loss of a batch that is on the model's device, differentiable."""
        ...

    def with_drawn_labels(
        self, model: nn.Module, batch: Batch, generator: Generator
    ) -> dict[str, Tensor]:
        """The batch with labels drawn from what the model itself predicts.

        Args:
            model: In evaluation mode.
            batch: On the model's device.
            generator: The source of randomness, on the CPU.
        """
        ...

    def score(self, outputs: Outputs, labels: NDArray[Any]) -> dict[str, float]:
        """Every objective by name over a whole split, natural sign."""
        ...

    def score_many(
        self, predictions: NDArray[np.float32], labels: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """What `score` would give for each of B models, `B` values per objective.

        Args:
            predictions: `B x n x c`; each model's predictions, as in `Outputs`.
            labels: `n`.
        """
        ...

    def resample(
        self, outputs: Outputs, labels: NDArray[Any], counts: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Every objective on B bootstrap samples, `B` values each.

        Args:
            outputs: Of the whole split, n examples.
            labels: `n`.
            counts: `B x n`; how often each example stands in each sample.
        """
        ...


@runtime_checkable
class OfModel(Protocol):
    """A task that has to know the model's kind before it can encode."""

    def configure(self, config: Any) -> None:
        """Take in the configuration of the model, a `transformers.PretrainedConfig`."""
        ...


@runtime_checkable
class OneCall(Protocol):
    """A task whose `outputs` calls the model itself, and once for each batch."""

    one_call: bool


@runtime_checkable
class Remarking(Protocol):
    """A task that has something to say of what models did on a split."""

    def remarks(self, split: str, models: Sequence[tuple[str, Outputs]]) -> list[str]:
        """Notes for the report.

        Args:
            split: Its name.
            models: Name and outcomes of each model.
        """
        ...


@runtime_checkable
class Explaining(Protocol):
    """A task that says what its metrics are about."""

    @property
    def about(self) -> Mapping[str, str]:
        """Metric → what it is about, with the labels of the data."""
        ...
