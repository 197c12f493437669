"""Metrics of many models' predictions of the same rows, all models at once.

Notation: B models, n examples, c classes. Each function takes predictions `B x n x c`
(`B x n x 1` for correlations) and labels `n`, and gives the `B` values that the metric of
the same name in `fusetune.tasks.metrics` has for each model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fusetune.tasks.resampling import Confusion, Floats, ratio


def confusion(predictions: NDArray[Any], labels: NDArray[Any]) -> Confusion:
    """What the classification metrics need to know of B models."""
    number, n, classes = predictions.shape
    guesses = predictions.argmax(axis=2)  # B x n
    hits, guessed = np.zeros((number, classes)), np.zeros((number, classes))
    for label in range(classes):
        chosen = guesses == label
        guessed[:, label] = np.count_nonzero(chosen, axis=1)
        hits[:, label] = np.count_nonzero(chosen[:, labels == label], axis=1)
    true = np.tile(np.bincount(labels, minlength=classes).astype(np.float64), (number, 1))
    return Confusion(hits, guessed, true, np.full(number, float(n)))


def accuracy(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Share of rows that are predicted rightly."""
    return confusion(predictions, labels).accuracy


def f1(predictions: NDArray[Any], labels: NDArray[Any], *, positive: int) -> Floats:
    """F1 of one class."""
    return confusion(predictions, labels).f1[:, positive]


def macro_f1(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Mean F1 of the classes that are there, as labels or as predictions."""
    return confusion(predictions, labels).macro_f1


def matthews(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Matthews correlation, for any number of classes."""
    return confusion(predictions, labels).matthews


def pearson(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Pearson correlation."""
    return _correlation(predictions[..., 0].astype(np.float64), labels.astype(np.float64))


def spearman(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Pearson correlation of the ranks, ties sharing their mean rank."""
    x = predictions[..., 0]
    finite = np.isfinite(x).all(axis=1, keepdims=True)
    ranks = stats.rankdata(np.where(finite, x, 0.0), axis=1)
    return _correlation(ranks, stats.rankdata(labels))


def _correlation(x: Floats, y: Floats) -> Floats:
    """`B`; of the rows of x, `B x n`, with y, `n`; 0 where it is not defined."""
    finite = np.isfinite(x).all(axis=1, keepdims=True)
    x = np.where(finite, x, 0.0)
    varies = (np.ptp(x, axis=1) > 0.0) & (np.ptp(y) > 0.0)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean()
    # Scaled, so that squares of very large or very small deviations keep their digits.
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    values = ratio(x @ y, np.sqrt((x * x).sum(axis=1) * (y @ y)))
    return np.where(varies, np.clip(values, -1.0, 1.0), 0.0)
