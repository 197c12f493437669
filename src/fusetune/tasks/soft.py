"""Classification metrics that count probabilities instead of guesses.

A guess flips when a logit crosses another by a hair's breadth; a probability moves little.
So these vary less from sample to sample than the metrics of which they are the soft form.

Notation: B models, n examples, c classes; predictions are logits, `B x n x c`, labels `n`. A
row whose logits are not finite counts as having no probability for any class.

.. [Brier1950] G. W. Brier. Verification of forecasts expressed in terms of probability.
   Monthly Weather Review 78, 1950.
.. [Wand1995] M. P. Wand, M. C. Jones. Kernel Smoothing. Chapman & Hall 1995, chapter 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.tasks.resampling import Confusion, Floats

BANDWIDTH = 0.5
"""Temperature of the smoothed metrics, in standard deviations of the difference of two
logits. For two classes the logistic step that takes the place of a guess has then about the
width of a normal distribution with 0.85 of these deviations."""


def probabilities(predictions: NDArray[Any]) -> Floats:
    """Softmax over the last axis."""
    logits = np.asarray(predictions, dtype=np.float64)
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    logits = np.where(finite, logits, 0.0)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.where(finite, shares / shares.sum(axis=-1, keepdims=True), 0.0)


def smoothed(predictions: NDArray[Any]) -> Floats:
    """Softmax at a temperature relative to each model's own spread of logits, `B x n x c`.

    A guess is a step at equal logits; this is that step with a kernel of relative width
    [Wand1995]_. A model that is surer of everything, right or wrong, gains nothing by it.
    """
    logits = np.asarray(predictions, dtype=np.float64)
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    safe = np.where(finite, logits, 0.0)
    centred = safe - safe.mean(axis=-1, keepdims=True)
    # Over all pairs of classes, the mean variance of the difference of their logits.
    pairs = 2.0 / max(centred.shape[-1] - 1, 1) * centred.var(axis=-2).sum(axis=-1)
    temperature = BANDWIDTH * np.sqrt(pairs)[..., None, None]
    scaled = safe / np.where(temperature > 0.0, temperature, 1.0)
    return probabilities(np.where(finite, scaled, np.nan))


def confusion(shares: Floats, labels: NDArray[Any]) -> Confusion:
    """The expected counts of B models, each guess drawn with its share, `B x n x c`."""
    number, n, classes = shares.shape
    hits = np.empty((number, classes))
    for label in range(classes):
        hits[:, label] = shares[:, labels == label, label].sum(axis=1)
    true = np.tile(np.bincount(labels, minlength=classes).astype(np.float64), (number, 1))
    return Confusion(hits, shares.sum(axis=1), true, np.full(number, float(n)))


def smooth_accuracy(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """`B`; accuracy of smoothed guesses."""
    return confusion(smoothed(predictions), labels).accuracy


def smooth_f1(predictions: NDArray[Any], labels: NDArray[Any], *, positive: int) -> Floats:
    """`B`; F1 of one class of smoothed guesses."""
    return confusion(smoothed(predictions), labels).f1[:, positive]


def smooth_macro_f1(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """`B`; macro F1 of smoothed guesses."""
    return confusion(smoothed(predictions), labels).macro_f1


def smooth_matthews(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """`B`; Matthews correlation of smoothed guesses."""
    return confusion(smoothed(predictions), labels).matthews


def brier(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """`B`; mean squared distance of the probabilities from the truth, 0 to 2 [Brier1950]_."""
    return np.asarray(_brier_rows(predictions, labels).mean(axis=-1))


def brier_resampled(
    predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]
) -> Floats:
    """The same of one model, `n x c`, on samples given as counts, `S x n`; `S` values."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(shares @ _brier_rows(predictions, labels))


def soft_f1(predictions: NDArray[Any], labels: NDArray[Any], *, positive: int) -> Floats:
    """`B`; F1 of one class from the expected counts under the model's probabilities."""
    return confusion(probabilities(predictions), labels).f1[:, positive]


def soft_f1_resampled(
    predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any], *, positive: int
) -> Floats:
    """The same of one model, `n x c`, on samples given as counts, `S x n`; `S` values."""
    share = probabilities(predictions)[:, positive]
    true = (labels == positive).astype(np.float64)
    sums = counts.astype(np.float64) @ np.stack([share * true, share, true], axis=1)
    total = sums[:, 1] + sums[:, 2]
    return np.asarray(
        np.where(total > 0.0, 2.0 * sums[:, 0] / np.where(total > 0.0, total, 1.0), 0.0)
    )


def _brier_rows(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    shares = probabilities(predictions)
    truth = np.eye(shares.shape[-1])[labels]
    return np.asarray(((shares - truth) ** 2).sum(axis=-1))
