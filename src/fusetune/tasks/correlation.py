"""Correlations of predicted numbers with the labels, of many models and on bootstrap samples.

Notation: M models, n examples, S samples. A sample is a row of `counts`, `S x n`: how often
each example was drawn; without counts there is one sample, the split itself. A correlation is
0 where it is not defined: of a constant, or of predictions that are not finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fusetune.tasks.confusion import Floats, ratio


def pearson(
    predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None = None
) -> Floats:
    """Pearson correlation.

    Args:
        predictions: `M x n x 1`.
        labels: `n`.
        counts: `S x n`; None for the split itself.

    Returns:
        `M x S`.
    """
    x, finite = _finite(predictions)
    y = labels.astype(np.float64)
    n = len(y)
    drawn = np.ones((1, n)) if counts is None else counts.astype(np.float64)
    varies = _varies(x, drawn) & _varies(y[None], drawn)
    # Centred and scaled first, so that differences of moments keep their digits.
    x, y = _standardised(x), _standardised(y[None])[0]
    weights = (drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1.0)).T  # n x S
    mean_x, mean_y = x @ weights, y @ weights
    spread_x = np.clip((x * x) @ weights - mean_x**2, 0.0, None)
    spread_y = np.clip((y * y) @ weights - mean_y**2, 0.0, None)
    covariance = (x * y) @ weights - mean_x * mean_y
    values = np.clip(ratio(covariance, np.sqrt(spread_x * spread_y)), -1.0, 1.0)
    return np.where(varies & finite, values, 0.0)


def spearman(
    predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None = None
) -> Floats:
    """Pearson correlation of the ranks within each sample, ties sharing their mean rank.

    Arguments and result are those of `pearson`.
    """
    x, finite = _finite(predictions)
    if counts is None:
        ranks = stats.rankdata(x, axis=1)[..., None]
        return np.where(finite, pearson(ranks, stats.rankdata(labels)), 0.0)
    # A sample's mean rank is (total + 1) / 2 exactly, so that a constant deviates from it by 0.
    middle = (counts.sum(axis=1, keepdims=True) + 1.0) / 2.0
    ranks_y = _ranks(labels.astype(np.float64), counts) - middle  # S x n
    spread_y = (counts * ranks_y * ranks_y).sum(axis=1)
    values = np.zeros((len(x), len(counts)))
    for model, row in enumerate(x):  # the ranks of all models would be M x S x n
        ranks_x = _ranks(row, counts) - middle
        spread = np.sqrt((counts * ranks_x * ranks_x).sum(axis=1) * spread_y)
        values[model] = ratio((counts * ranks_x * ranks_y).sum(axis=1), spread)
    return np.where(finite, np.clip(values, -1.0, 1.0), 0.0)


def _finite(predictions: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """`M x n` predictions, zeros for a model with one that is not finite; `M x 1` which are."""
    x = predictions[..., 0].astype(np.float64)
    finite = np.asarray(np.isfinite(x).all(axis=1, keepdims=True))
    return np.where(finite, x, 0.0), finite


def _standardised(x: Floats) -> Floats:
    """Rows with mean 0 and largest deviation 1; a constant row is 0."""
    centred = x - x.mean(axis=1, keepdims=True)
    scale = np.abs(centred).max(axis=1, keepdims=True, initial=0.0)
    return np.asarray(centred / np.where(scale > 0.0, scale, 1.0))


def _varies(x: Floats, counts: NDArray[Any]) -> NDArray[np.bool_]:
    """`M x S`; whether more than one value of a row of x was drawn."""
    drawn = counts > 0
    if drawn.all():  # of the split itself, for thousands of models: no array of M x S x n
        return np.repeat(np.ptp(x, axis=1)[:, None] > 0.0, len(counts), axis=1)
    lowest = [np.where(drawn, row, np.inf).min(axis=1) for row in x]
    highest = [np.where(drawn, row, -np.inf).max(axis=1) for row in x]
    return np.asarray(np.stack(lowest) < np.stack(highest))


def _ranks(x: Floats, counts: NDArray[Any]) -> Floats:
    """`S x n`; the mean rank of each example's value among the examples drawn."""
    values, position = np.unique(x, return_inverse=True)  # u values
    order = np.argsort(position, kind="stable")
    starts = np.searchsorted(position[order], np.arange(len(values)))
    drawn = np.add.reduceat(counts[:, order].astype(np.float64), starts, axis=1)  # S x u
    before = np.cumsum(drawn, axis=1) - drawn
    return np.asarray((before + (drawn + 1.0) / 2.0)[:, position])
