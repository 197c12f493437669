"""What classification metrics count, of many models and on many bootstrap samples at once.

Notation: M models, n examples, c classes, S samples. A model's `shares`, `n x c`, say how much
of each example's guess goes to each class: a row of zeros and a one for a plain guess
(`guesses`), or the probabilities (`probabilities`), so that one count serves hard and soft
metrics. A sample is a row of `counts`, `S x n`: how often each example was drawn; without
counts there is one sample, the split itself.

.. [Gorodkin2004] J. Gorodkin. Comparing two K-category assignments by a K-category correlation
   coefficient. Computational Biology and Chemistry 28, 2004.
.. [Wand1995] M. P. Wand, M. C. Jones. Kernel Smoothing. Chapman & Hall 1995, chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BANDWIDTH = 0.5
"""Temperature of smoothed guesses, in standard deviations of the difference of two logits. For
two classes the logistic step that takes the place of a guess has then about the width of a
normal distribution with 0.85 of these deviations."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """The sums that all metrics of guesses are made of.

    Attributes:
        hits: `M x S x c`; what went to a class of the examples that are of it.
        guessed: `M x S x c`; what went to a class of all examples.
        true: `1 x S x c`; examples of each class.
    """

    hits: Floats
    guessed: Floats
    true: Floats

    @classmethod
    def of(
        cls, shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None = None
    ) -> Confusion:
        """Count.

        Args:
            shares: `M x n x c`; zeros and ones, or probabilities.
            labels: `n`; class ids.
            counts: `S x n`; None for the split itself.
        """
        classes = shares.shape[2]
        truth = labels[:, None] == np.arange(classes)  # n x c
        if counts is not None:
            weights = counts.astype(np.float64)
            # One product, which reads the counts once: they are larger than the shares.
            sums = weights @ np.concatenate([shares * truth, shares], axis=2).astype(np.float64)
            return cls(sums[..., :classes], sums[..., classes:], (weights @ truth)[None])
        # Class by class: the product with `truth` would take the memory of all shares again.
        hits = [_sum(shares[:, truth[:, k], k]) for k in range(classes)]
        guessed = [_sum(shares[..., k]) for k in range(classes)]
        return cls(
            hits=np.stack(hits, axis=-1)[:, None],
            guessed=np.stack(guessed, axis=-1)[:, None],
            true=truth.sum(axis=0, dtype=np.float64)[None, None],
        )

    @property
    def accuracy(self) -> Floats:
        """`M x S`; share of examples that are guessed rightly."""
        return ratio(self.hits.sum(axis=-1), self.true.sum(axis=-1))

    @property
    def f1(self) -> Floats:
        """`M x S x c`; 0 where a class is neither present nor guessed."""
        return ratio(2.0 * self.hits, self.guessed + self.true)

    @property
    def macro_f1(self) -> Floats:
        """`M x S`; mean F1 of the classes that are present or guessed."""
        seen = (self.guessed + self.true > 0.0).sum(axis=-1)
        return ratio(self.f1.sum(axis=-1), seen.astype(np.float64))

    @property
    def matthews(self) -> Floats:
        """`M x S`; Matthews correlation of any number of classes, R_K of [Gorodkin2004]_."""
        total = self.true.sum(axis=-1)
        covariance = self.hits.sum(axis=-1) * total - (self.guessed * self.true).sum(axis=-1)
        spread_guessed = total**2 - (self.guessed**2).sum(axis=-1)
        spread_true = total**2 - (self.true**2).sum(axis=-1)
        return ratio(covariance, np.sqrt(spread_guessed * spread_true))


def guesses(predictions: NDArray[Any]) -> NDArray[np.bool_]:
    """One for the class with the highest logit, the first of equal ones; `M x n x c`.

    Examples of a class lie side by side in memory, in which order they are counted.
    """
    chosen = predictions.argmax(axis=-1)[:, None]  # M x 1 x n
    return np.moveaxis(chosen == np.arange(predictions.shape[-1])[:, None], 1, 2)


def probabilities(predictions: NDArray[Any]) -> Floats:
    """Softmax over the last axis; zeros for a row whose logits are not finite."""
    logits = np.asarray(predictions, dtype=np.float64)
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    logits = np.where(finite, logits, 0.0)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.where(finite, shares / shares.sum(axis=-1, keepdims=True), 0.0)


def smoothed(predictions: NDArray[Any]) -> Floats:
    """Guesses with a soft edge: softmax at a temperature relative to the spread of the logits.

    A guess flips when a logit crosses another by a hair's breadth, so that metrics of guesses
    owe much to the sample of rows. This is that step with a kernel of relative width
    [Wand1995]_: a model that is surer of everything, right or wrong, gains nothing by it.

    Args:
        predictions: Logits, `M x n x c`.

    Returns:
        `M x n x c`; zeros for a row whose logits are not finite.
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


def _sum(shares: NDArray[Any]) -> Floats:
    """`M`; over the examples, `M x n`; whole numbers are several times as fast as floats."""
    kind = np.intp if shares.dtype == np.bool_ else np.float64
    return np.asarray(shares.sum(axis=1, dtype=kind), dtype=np.float64)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient, 0 where the denominator is 0."""
    safe = np.where(denominator > 0.0, denominator, 1.0)
    return np.asarray(np.where(denominator > 0.0, numerator / safe, 0.0))
