"""Metrics of a whole split, by name: of one model or many, on the split or bootstrap samples.

Each metric is one function, `measure`, of M models' predictions and S samples; the methods of
`Metric` are its views. The values are scikit-learn's and SciPy's, which the tests hold them
against. Where a metric is not defined its value is 0, never NaN: F1 of a class that is neither
present nor predicted, Matthews correlation of constant labels or predictions, correlations of a
constant, of fewer than two rows, or of predictions that are not finite.
Macro F1 is the mean over the classes that are present or predicted, as in scikit-learn.

.. [Brier1950] G. W. Brier. Verification of forecasts expressed in terms of probability.
   Monthly Weather Review 78, 1950.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError
from fusetune.objective import Direction
from fusetune.tasks.confusion import Confusion, Floats, guesses, probabilities, smoothed
from fusetune.tasks.correlation import pearson, spearman

CLASSIFICATION = "sequence-classification"
REGRESSION = "regression"

Shares = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for a whole split.

    Attributes:
        name: As in recipes and results.
        direction: "maximize" or "minimize".
        kinds: Task kinds that it applies to.
        measure: (shares or numbers `M x n x c`, labels `n`, counts `S x n` or None) → `M x S`.
        shares: What `measure` takes, of logits `M x n x c`; None where it takes numbers as they
            are predicted.
    """

    name: str
    direction: Direction
    kinds: tuple[str, ...]
    measure: Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], Floats]
    shares: Shares | None = None

    def value(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        """Of one model's predictions, `n x c`."""
        return float(self.batched(predictions[None], labels)[0])

    def batched(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
        """`M`; of many models' predictions, `M x n x c`."""
        return self.measure(self._taken(predictions), labels, None)[:, 0]

    def resampled(
        self, predictions: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any]
    ) -> Floats:
        """`S`; of one model's predictions, `n x c`, on samples given as counts, `S x n`."""
        return np.asarray(self.measure(self._taken(predictions[None]), labels, counts)[0])

    def smooth(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Floats | None:
        """`M`; of guesses with a soft edge, which owe less to the sample of rows.

        See `confusion.smoothed`. None where the metric counts no guesses and is smooth itself.
        """
        if self.shares is not guesses:
            return None
        return self.measure(smoothed(predictions), labels, None)[:, 0]

    def _taken(self, predictions: NDArray[Any]) -> NDArray[Any]:
        return predictions if self.shares is None else self.shares(predictions)


def _accuracy(
    shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None
) -> Floats:
    return Confusion.of(shares, labels, counts).accuracy


def _f1(
    shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None, *, positive: int
) -> Floats:
    return Confusion.of(shares, labels, counts).f1[..., positive]


def _macro_f1(
    shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None
) -> Floats:
    return Confusion.of(shares, labels, counts).macro_f1


def _matthews(
    shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None
) -> Floats:
    return Confusion.of(shares, labels, counts).matthews


def _brier(shares: NDArray[Any], labels: NDArray[Any], counts: NDArray[Any] | None) -> Floats:
    """Mean squared distance of the probabilities from the truth, 0 to 2 [Brier1950]_."""
    rows = ((shares - np.eye(shares.shape[-1])[labels]) ** 2).sum(axis=-1)  # M x n
    if counts is None:
        return np.asarray(rows.mean(axis=1, keepdims=True))
    return np.asarray(rows @ (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).T)


def f1(positive: int = 1) -> Metric:
    """F1 of one class, of class id 1 unless told otherwise."""
    measure = functools.partial(_f1, positive=positive)
    return Metric("f1", "maximize", (CLASSIFICATION,), measure, guesses)


def soft_f1(positive: int = 1) -> Metric:
    """F1 of one class from probabilities, of class id 1 unless told otherwise."""
    measure = functools.partial(_f1, positive=positive)
    return Metric("soft_f1", "maximize", (CLASSIFICATION,), measure, probabilities)


OF_ONE_CLASS: dict[str, Callable[[int], Metric]] = {"f1": f1, "soft_f1": soft_f1}
"""Metrics that are about one of two labels, by name: class id → metric."""

_ALL = (
    Metric("accuracy", "maximize", (CLASSIFICATION,), _accuracy, guesses),
    f1(),
    Metric("macro_f1", "maximize", (CLASSIFICATION,), _macro_f1, guesses),
    Metric("matthews_correlation", "maximize", (CLASSIFICATION,), _matthews, guesses),
    Metric("brier", "minimize", (CLASSIFICATION,), _brier, probabilities),
    soft_f1(),
    Metric("pearson", "maximize", (REGRESSION,), pearson),
    Metric("spearman", "maximize", (REGRESSION,), spearman),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


ABOUT = {
    "accuracy": "the share of right labels",
    "macro_f1": "the mean of the F1 of all {classes} labels, each with the same weight",
    "matthews_correlation": "the correlation of the {classes} labels with the guesses, -1 to 1",
    "brier": "the squared distance of the probabilities of {classes} labels from the truth, "
    "0 to 2; lower is better",
    "pearson": "the linear correlation of the predicted numbers with the labels",
    "spearman": "the correlation of the ranks of predicted numbers and labels",
    "f1": "the F1 of the label {positive!r}, against {other!r}",
    "soft_f1": "the F1 of the label {positive!r}, against {other!r}, from probabilities",
}
"""What each metric is about, to be filled with the labels of the data."""


def find(name: str, kind: str | None = None) -> Metric:
    """The metric of that name.

    Args:
        name: As in recipes.
        kind: Of the task; any by default.

    Raises:
        RecipeError: If there is none; the message lists those of this kind.
    """
    fitting = [m.name for m in METRICS.values() if kind is None or kind in m.kinds]
    if name in fitting:
        return METRICS[name]
    close = difflib.get_close_matches(name, fitting, n=1, cutoff=0.5)
    known = f"known are {', '.join(fitting)}"
    raise RecipeError(
        f"The metric {name} is not one of {kind}; {known}."
        if name in METRICS
        else f"There is no metric {name!r}{f' of {kind}' if kind else ''}; {known}.",
        hint=f"Did you mean {close[0]}?"
        if close
        else "For any other measure give fusetune.fuse a function of your own.",
    )
