"""Metrics of a whole split, by name.

`value` is scikit-learn's or SciPy's; `resampled` gives what `value` would give on bootstrap
samples, and `batched` what it gives for each of many models. Where a metric is not defined
its value is 0, never NaN: F1 of a class that is neither present nor predicted, Matthews
correlation of constant labels or predictions, correlations of a constant, of fewer than two
rows, or of predictions that are not finite.
Macro F1 is the mean over the classes that are present or predicted, as in scikit-learn.
"""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from fusetune.errors import RecipeError
from fusetune.objective import Direction
from fusetune.tasks import batched, resampling, soft

CLASSIFICATION = "sequence-classification"
REGRESSION = "regression"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for a whole split.

    Attributes:
        name: As in recipes and results.
        direction: "maximize" or "minimize".
        kinds: Task kinds that it applies to.
        value: (predictions `n x c`, labels `n`) → value.
        resampled: (predictions `n x c`, labels `n`, counts `B x n`) → `B` values.
        batched: (predictions `B x n x c`, labels `n`) → `B` values.
        smooth: As `batched`, of guesses with a soft edge, which owe less to the sample of
            rows; see `soft.smoothed`. None where the metric is smooth itself.
    """

    name: str
    direction: Direction
    kinds: tuple[str, ...]
    value: Callable[[NDArray[Any], NDArray[Any]], float]
    resampled: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float64]]
    batched: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
    smooth: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]] | None = None


def _accuracy(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(sklearn_metrics.accuracy_score(labels, predictions.argmax(axis=1)))


def _f1(predictions: NDArray[Any], labels: NDArray[Any], *, positive: int | None) -> float:
    """F1 of one class, or the mean over all of them."""
    classes = None if positive is None else [positive]
    return float(
        sklearn_metrics.f1_score(
            labels,
            predictions.argmax(axis=1),
            labels=classes,
            average="macro",
            zero_division=0.0,
        )
    )


def _matthews(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    guessed = predictions.argmax(axis=1)
    if np.ptp(guessed) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(sklearn_metrics.matthews_corrcoef(labels, guessed))


def _correlation(predictions: NDArray[Any], labels: NDArray[Any], *, ranks: bool) -> float:
    x = predictions.reshape(len(labels)).astype(np.float64)
    y = labels.astype(np.float64)
    if len(x) < 2 or not np.isfinite(x).all() or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return 0.0
    correlate: Any = stats.spearmanr if ranks else stats.pearsonr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant predictions: an early checkpoint
        value = float(correlate(x, y).statistic)
    return value if math.isfinite(value) else 0.0


def f1(positive: int = 1) -> Metric:
    """F1 of one class, of class id 1 unless told otherwise."""
    return Metric(
        "f1",
        "maximize",
        (CLASSIFICATION,),
        functools.partial(_f1, positive=positive),
        functools.partial(resampling.f1, positive=positive),
        functools.partial(batched.f1, positive=positive),
        functools.partial(soft.smooth_f1, positive=positive),
    )


def soft_f1(positive: int = 1) -> Metric:
    """F1 of one class from probabilities, of class id 1 unless told otherwise."""
    return Metric(
        "soft_f1",
        "maximize",
        (CLASSIFICATION,),
        functools.partial(_soft_f1, positive=positive),
        functools.partial(soft.soft_f1_resampled, positive=positive),
        functools.partial(soft.soft_f1, positive=positive),
    )


OF_ONE_CLASS: dict[str, Callable[[int], Metric]] = {"f1": f1, "soft_f1": soft_f1}
"""Metrics that are about one of two labels, by name: class id → metric."""


def _soft_f1(predictions: NDArray[Any], labels: NDArray[Any], *, positive: int) -> float:
    return float(soft.soft_f1(predictions[None], labels, positive=positive)[0])


def _brier(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(soft.brier(predictions[None], labels)[0])


_ALL = (
    Metric(
        "accuracy",
        "maximize",
        (CLASSIFICATION,),
        _accuracy,
        resampling.accuracy,
        batched.accuracy,
        soft.smooth_accuracy,
    ),
    f1(),
    Metric(
        "macro_f1",
        "maximize",
        (CLASSIFICATION,),
        functools.partial(_f1, positive=None),
        resampling.macro_f1,
        batched.macro_f1,
        soft.smooth_macro_f1,
    ),
    Metric(
        "matthews_correlation",
        "maximize",
        (CLASSIFICATION,),
        _matthews,
        resampling.matthews,
        batched.matthews,
        soft.smooth_matthews,
    ),
    Metric(
        "brier",
        "minimize",
        (CLASSIFICATION,),
        _brier,
        soft.brier_resampled,
        soft.brier,
    ),
    soft_f1(),
    Metric(
        "pearson",
        "maximize",
        (REGRESSION,),
        functools.partial(_correlation, ranks=False),
        resampling.pearson,
        batched.pearson,
    ),
    Metric(
        "spearman",
        "maximize",
        (REGRESSION,),
        functools.partial(_correlation, ranks=True),
        resampling.spearman,
        batched.spearman,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find(name: str) -> Metric:
    """The metric of that name.

    Raises:
        RecipeError: If there is none; the message lists the known names.
    """
    if name in METRICS:
        return METRICS[name]
    close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
    raise RecipeError(
        f"There is no metric {name!r}; known are {', '.join(METRICS)}.",
        hint=f"Did you mean {close[0]}?" if close else "",
    )
