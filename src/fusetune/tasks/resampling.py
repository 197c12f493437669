"""Metrics on bootstrap samples, all samples at once.

Notation: n examples, c classes, B samples. A sample is a row of counts: how often each
example was drawn. Each function takes predictions `n x c` (`n x 1` for correlations), labels
`n` and counts `B x n`, and gives the `B` values that the metric of the same name in
`fusetune.tasks.metrics` has on the repeated rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Confusion:
    """What the classification metrics need to know of B samples.

    Attributes:
        hits: `B x c`; rows of each class that are predicted rightly.
        guessed: `B x c`; rows that are predicted as each class.
        true: `B x c`; rows of each class.
        total: `B`; all rows.
    """

    hits: Floats
    guessed: Floats
    true: Floats
    total: Floats

    @classmethod
    def of(
        cls, predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]
    ) -> Confusion:
        """Counted by one matrix product."""
        classes = np.arange(predictions.shape[1])
        guessed = predictions.argmax(axis=1)[:, None] == classes  # n x c
        true = labels[:, None] == classes  # n x c
        indicators = np.hstack([guessed & true, guessed, true]).astype(np.float64)
        sums = counts.astype(np.float64) @ indicators  # B x 3c
        hits, guesses, truths = np.hsplit(sums, 3)
        return cls(hits, guesses, truths, total=truths.sum(axis=1))

    @property
    def accuracy(self) -> Floats:
        """`B`; share of rows that are predicted rightly."""
        return ratio(self.hits.sum(axis=1), self.total)

    @property
    def f1(self) -> Floats:
        """`B x c`; 0 where a class is neither present nor predicted."""
        return ratio(2.0 * self.hits, self.guessed + self.true)

    @property
    def macro_f1(self) -> Floats:
        """`B`; mean F1 of the classes that are there, as labels or as predictions."""
        seen = (self.guessed + self.true > 0).sum(axis=1)
        return ratio(self.f1.sum(axis=1), seen.astype(np.float64))

    @property
    def matthews(self) -> Floats:
        """`B`; Matthews correlation, for any number of classes (R_K of Gorodkin 2004)."""
        covariance = self.hits.sum(axis=1) * self.total
        covariance = covariance - (self.guessed * self.true).sum(axis=1)
        spread_guessed = self.total**2 - (self.guessed**2).sum(axis=1)
        spread_true = self.total**2 - (self.true**2).sum(axis=1)
        return ratio(covariance, np.sqrt(spread_guessed * spread_true))


def accuracy(predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Share of rows that are predicted rightly."""
    return Confusion.of(predictions, labels, counts).accuracy


def f1(
    predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any], *, positive: int
) -> Floats:
    """F1 of one class."""
    return Confusion.of(predictions, labels, counts).f1[:, positive]


def macro_f1(predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Mean F1 of the classes that a sample has, as labels or as predictions."""
    return Confusion.of(predictions, labels, counts).macro_f1


def matthews(predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Matthews correlation, for any number of classes."""
    return Confusion.of(predictions, labels, counts).matthews


def pearson(predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Pearson correlation, from moments by one matrix product."""
    x, y = _columns(predictions, labels)
    if not np.isfinite(x).all():
        return np.zeros(len(counts))
    # Centred and scaled once, so that differences of moments keep their digits.
    x, y = _standardised(x), _standardised(y)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    moments = shares @ np.stack([x, y, x * x, y * y, x * y], axis=1)  # B x 5
    mx, my, mxx, myy, mxy = moments.T
    spread = np.sqrt(np.clip(mxx - mx**2, 0.0, None) * np.clip(myy - my**2, 0.0, None))
    values = np.clip(ratio(mxy - mx * my, spread), -1.0, 1.0)
    return np.where(_varies(x, counts) & _varies(y, counts), values, 0.0)


def spearman(predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]) -> Floats:
    """Pearson correlation of the ranks within each sample, ties sharing their mean rank."""
    x, y = _columns(predictions, labels)
    if not np.isfinite(x).all():
        return np.zeros(len(counts))
    # A sample's mean rank is (total + 1) / 2 exactly, so a constant deviates from it by 0.
    middle = (counts.sum(axis=1, keepdims=True) + 1.0) / 2.0
    rx = _ranks(x, counts) - middle  # B x n
    ry = _ranks(y, counts) - middle
    covariance = (counts * rx * ry).sum(axis=1)
    spread = np.sqrt((counts * rx * rx).sum(axis=1) * (counts * ry * ry).sum(axis=1))
    return np.clip(ratio(covariance, spread), -1.0, 1.0)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient, 0 where the denominator is 0."""
    safe = np.where(denominator > 0.0, denominator, 1.0)
    return np.asarray(np.where(denominator > 0.0, numerator / safe, 0.0))


def _columns(predictions: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, Floats]:
    return predictions.reshape(len(labels)).astype(np.float64), labels.astype(np.float64)


def _standardised(x: Floats) -> Floats:
    centred = x - x.mean()
    scale = float(np.abs(centred).max(initial=0.0))
    return np.asarray(centred / scale) if scale > 0.0 else centred


def _varies(x: Floats, counts: NDArray[Any]) -> NDArray[np.bool_]:
    """`B`; whether more than one value of x was drawn."""
    drawn = counts > 0
    lowest = np.where(drawn, x, np.inf).min(axis=1)
    highest = np.where(drawn, x, -np.inf).max(axis=1)
    return np.asarray(lowest < highest)


def _ranks(x: Floats, counts: NDArray[Any]) -> Floats:
    """`B x n`; the mean rank of each row's value among the rows drawn."""
    values, position = np.unique(x, return_inverse=True)  # u values
    order = np.argsort(position, kind="stable")
    starts = np.searchsorted(position[order], np.arange(len(values)))
    drawn = np.add.reduceat(counts[:, order].astype(np.float64), starts, axis=1)  # B x u
    before = np.cumsum(drawn, axis=1) - drawn
    return np.asarray((before + (drawn + 1.0) / 2.0)[:, position])
