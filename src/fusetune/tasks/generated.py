"""What is known of each generated text, and the objectives as functions of its sums.

Notation: n examples, c columns, B samples or models. Columns are: the example's loss, summed
over its answer's tokens; how many these are; whether generation ran into the limit; then the
columns of each metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.objective import LOSS
from fusetune.tasks.confusion import Floats, ratio
from fusetune.tasks.task import Outputs
from fusetune.tasks.text_metrics import TextMetric

LOSSES, TOKENS, LIMITED, FIRST = 0, 1, 2, 3
WHOLE_SAMPLES = 100
"""Samples on which a metric without a share of each example is computed; each one is a call."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of some metrics, and the objectives that follow from them.

    Attributes:
        metrics: In the order of their columns.
    """

    metrics: tuple[TextMetric, ...]

    def of(
        self,
        loss: NDArray[Any],
        tokens: NDArray[Any],
        limited: Sequence[bool],
        texts: Sequence[str],
        references: Sequence[Sequence[str]],
    ) -> NDArray[np.float32]:
        """`n x c`; without metrics, texts and references are not looked at.

        Args:
            loss: `n`, summed over tokens.
            tokens: `n`.
            limited: `n`.
            texts: n generated texts.
            references: One or more of each.
        """
        measured = [metric.measure(texts, references) for metric in self.metrics]
        known = np.column_stack([loss, tokens, np.array(limited, dtype=np.float64)])
        return np.hstack([known, *measured]).astype(np.float32)

    def resample(
        self, outputs: Outputs, labels: NDArray[Any], counts: NDArray[Any]
    ) -> dict[str, Floats]:
        """Every objective on B samples, as `Task.resample`.

        A metric that is no function of sums is computed on the first `WHOLE_SAMPLES` only,
        and its values are repeated for the others.
        """
        counts = counts.astype(np.float64)
        sums = counts @ outputs.predictions.astype(np.float64)
        values = self._values(sums, counts.sum(axis=1))
        for metric in self.metrics:
            if metric.whole is not None and np.isnan(values[metric.name]).all():
                values[metric.name] = _whole(metric, outputs, labels, counts)
        return values

    def many(self, predictions: NDArray[np.float32]) -> dict[str, Floats]:
        """Every objective of B models, from their columns, `B x n x c`."""
        examples = np.full(len(predictions), float(predictions.shape[1]))
        return self._values(predictions.sum(axis=1, dtype=np.float64), examples)

    def _values(self, sums: Floats, examples: Floats) -> dict[str, Floats]:
        values = {LOSS.name: ratio(sums[:, LOSSES], sums[:, TOKENS])}
        start = FIRST
        for metric in self.metrics:
            end = start + metric.columns
            values[metric.name] = metric.value(sums[:, start:end], examples)
            start = end
        return values


def remarks(split: str, models: Sequence[tuple[str, Outputs]], limit: int) -> list[str]:
    """How many texts of each model ran into the limit of new tokens; nothing if none did."""
    cut = {name: int(outputs.predictions[:, LIMITED].sum()) for name, outputs in models}
    listed = ", ".join(f"{name} {n:,}" for name, n in cut.items() if n)
    if not listed:
        return []
    total = len(models[0][1])
    return [
        f"Of {total:,} {split} texts, so many ran into the limit of {limit} new tokens: "
        f"{listed}."
    ]


def _whole(
    metric: TextMetric, outputs: Outputs, labels: NDArray[Any], counts: Floats
) -> Floats:
    assert metric.whole is not None
    assert outputs.texts is not None  # there are metrics, so texts were generated
    values = []
    for sample in counts[:WHOLE_SAMPLES]:
        rows = np.repeat(np.arange(len(labels)), sample.astype(np.int64))
        values.append(metric.whole([outputs.texts[i] for i in rows], labels[rows].tolist()))
    return np.resize(np.array(values, dtype=np.float64), len(counts))


class ScoredByColumns:
    """The part of a task that follows from the columns of its outputs alone."""

    _columns: Columns

    def score(self, outputs: Outputs, labels: NDArray[Any]) -> dict[str, float]:
        """Mean loss and every metric over a whole split."""
        once = self.resample(outputs, labels, np.ones((1, len(outputs))))
        return {name: float(value[0]) for name, value in once.items()}

    def score_many(
        self, predictions: NDArray[np.float32], labels: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Every objective of B models, from the columns of their outputs, `B x n x c`."""
        return self._columns.many(predictions)

    def resample(
        self, outputs: Outputs, labels: NDArray[Any], counts: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Every objective on B bootstrap samples, `counts` is `B x n`."""
        return self._columns.resample(outputs, labels, counts)
