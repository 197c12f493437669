from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from fusetune.errors import RecipeError
from fusetune.tasks import metrics


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def logits(guesses: list[int], classes: int = 2) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[guesses]


def counts_of(rng: np.random.Generator, samples: int, n: int) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=samples)


def repeated(
    metric: metrics.Metric, predictions: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> list[float]:
    rows = [np.repeat(np.arange(len(labels)), c) for c in counts]
    return [metric.value(predictions[r], labels[r]) for r in rows]


def oracle(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """What scikit-learn and SciPy say."""
    if name in ("pearson", "spearman"):
        form = stats.pearsonr if name == "pearson" else stats.spearmanr
        return float(form(predictions[:, 0], labels).statistic)
    guessed = predictions.argmax(axis=1)
    if name == "accuracy":
        return float(sklearn_metrics.accuracy_score(labels, guessed))
    if name == "matthews_correlation":
        return float(sklearn_metrics.matthews_corrcoef(labels, guessed))
    classes = [1] if name == "f1" else None
    return float(
        sklearn_metrics.f1_score(
            labels, guessed, labels=classes, average="macro", zero_division=0.0
        )
    )


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    "name", ["accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearman"]
)
def test_values_are_those_of_scikit_learn_and_scipy(name: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    metric = metrics.find(name)
    for n in (7, 90):
        numbers = name in ("pearson", "spearman")
        predictions = rng.normal(size=(n, 1 if numbers else classes)).astype(np.float32)
        labels = rng.normal(size=n).round(1) if numbers else rng.integers(0, classes, n)
        expected = oracle(name, predictions.astype(np.float64), labels)
        assert metric.value(predictions, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    # 4 rows right of 6; class 1: 2 hits, 3 guessed, 3 true; (tp·tn − fp·fn) / √… = (4 − 1) / 9
    [("accuracy", 4 / 6), ("f1", 2 / 3), ("macro_f1", 2 / 3), ("matthews_correlation", 3 / 9)],
)
def test_values_by_hand(name: str, expected: float) -> None:
    value = metrics.find(name).value(logits([1, 1, 0, 0, 0, 1]), np.array([1, 1, 1, 0, 0, 0]))
    assert value == pytest.approx(expected)


def test_correlations_by_hand() -> None:
    x = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)
    y = np.array([0.0, 0.0, 3.0])
    assert metrics.find("pearson").value(x, y) == pytest.approx(np.sqrt(3) / 2)
    assert metrics.find("spearman").value(np.exp(x), x[:, 0]) == pytest.approx(1.0)
    assert metrics.find("spearman").value(x, y) == pytest.approx(np.sqrt(3) / 2)  # a tie


def test_f1_of_another_class() -> None:
    guesses, labels = logits([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert metrics.f1().value(guesses, labels) == pytest.approx(2 * 2 / (2 + 3))
    assert metrics.f1(positive=0).value(guesses, labels) == pytest.approx(2 * 1 / (2 + 1))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews_correlation"])
def test_classification_on_samples_equals_value_on_repeated_rows(
    name: str, classes: int
) -> None:
    rng = np.random.default_rng(0)
    for n in (4, 60):  # four rows: many samples lack classes
        predictions = rng.normal(size=(n, classes)).astype(np.float32)
        labels = rng.integers(0, classes, n)
        counts = counts_of(rng, 60, n)
        metric = metrics.find(name)
        np.testing.assert_allclose(
            metric.resampled(predictions, labels, counts),
            repeated(metric, predictions, labels, counts),
            atol=1e-12,
        )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("n", [3, 50])
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_on_samples_equal_value_on_repeated_rows(
    name: str, n: int, ties: bool
) -> None:
    rng = np.random.default_rng(1)
    predictions = (100.0 + rng.normal(size=(n, 1))).astype(np.float32)
    labels = predictions[:, 0].astype(np.float64) + rng.normal(size=n)
    if ties:
        predictions, labels = predictions.round(), labels.round()
    counts = counts_of(rng, 80, n)  # of three rows: one sample in nine is a constant
    metric = metrics.find(name)
    np.testing.assert_allclose(
        metric.resampled(predictions, labels, counts),
        repeated(metric, predictions, labels, counts),
        atol=1e-9,
    )


@pytest.mark.parametrize("name", ["f1", "macro_f1", "matthews_correlation"])
def test_a_class_that_is_never_predicted(name: str) -> None:
    predictions, labels = logits([0, 0, 0]), np.array([0, 1, 0])
    expected = {"f1": 0.0, "macro_f1": 0.4, "matthews_correlation": 0.0}[name]
    metric = metrics.find(name)
    assert metric.value(predictions, labels) == pytest.approx(expected)
    assert metric.resampled(predictions, labels, np.ones((1, 3)))[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("guess", [0.1, np.nan, np.inf])
def test_a_correlation_with_what_says_nothing_is_zero(name: str, guess: float) -> None:
    predictions, labels = np.full((5, 1), guess, np.float32), np.arange(5.0)
    metric = metrics.find(name)
    assert metric.value(predictions, labels) == 0.0
    assert list(metric.resampled(predictions, labels, np.ones((2, 5)))) == [0.0, 0.0]
    assert metric.value(labels[:, None], np.full(5, 0.1)) == 0.0


@pytest.mark.parametrize("name", list(metrics.METRICS))
@pytest.mark.parametrize("rows", [2, 3, 40])
def test_many_models_at_once_have_the_values_of_each(name: str, rows: int) -> None:
    rng = np.random.default_rng(2)
    metric = metrics.find(name)
    if metrics.CLASSIFICATION in metric.kinds:
        predictions = rng.normal(size=(50, rows, 2)).astype(np.float32)
        labels = rng.integers(0, 2, rows)
    else:
        predictions = (100.0 + rng.normal(size=(50, rows, 1)).round(1)).astype(np.float32)
        predictions[7] = 3.0
        predictions[8, 0] = np.nan
        labels = rng.normal(size=rows).round(1)
    np.testing.assert_allclose(
        metric.batched(predictions, labels),
        [metric.value(p, labels) for p in predictions],
        atol=1e-9,
    )
    constant = np.ones_like(labels)
    np.testing.assert_allclose(
        metric.batched(predictions, constant),
        [metric.value(p, constant) for p in predictions],
        atol=1e-12,
    )


def test_many_models_of_five_classes() -> None:
    rng = np.random.default_rng(3)
    predictions, labels = rng.normal(size=(9, 30, 5)), rng.integers(0, 4, 30)
    for name in ("accuracy", "macro_f1", "matthews_correlation"):
        metric = metrics.find(name)
        expected = [metric.value(p, labels) for p in predictions]
        np.testing.assert_allclose(metric.batched(predictions, labels), expected, atol=1e-12)


def test_nearly_constant_predictions_give_no_warning() -> None:
    predictions = 1.0 + 1e-16 * np.arange(9)[:, None]
    assert np.isfinite(metrics.find("pearson").value(predictions, np.arange(9.0)))


def test_only_the_known_names_are_found() -> None:
    for name, metric in metrics.METRICS.items():
        assert metrics.find(name) is metric
        direction = "minimize" if name == "brier" else "maximize"
        assert (metric.name, metric.direction) == (name, direction)
    with pytest.raises(
        RecipeError, match=r"no metric 'matthews'; known are accuracy, f1, .*mean m"
    ):
        metrics.find("matthews")


def test_brier_and_soft_f1_by_hand() -> None:
    shares = np.array([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2]])
    labels = np.array([1, 0, 1])
    predictions = np.log(shares)
    brier = 2.0 * np.mean([0.1**2, 0.6**2, 0.8**2])
    assert metrics.find("brier").value(predictions, labels) == pytest.approx(brier)
    hits, guessed = 0.9 + 0.2, 0.9 + 0.6 + 0.2
    soft = metrics.find("soft_f1").value(predictions, labels)
    assert soft == pytest.approx(2 * hits / (guessed + 2))


@pytest.mark.parametrize("name", ["brier", "soft_f1"])
def test_soft_metrics_on_samples_and_of_many_models(name: str) -> None:
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(4, 50, 2)).astype(np.float32)
    labels = rng.integers(0, 2, 50)
    counts = counts_of(rng, 40, 50)
    metric = metrics.find(name)
    np.testing.assert_allclose(
        metric.resampled(predictions[0], labels, counts),
        repeated(metric, predictions[0], labels, counts),
    )
    np.testing.assert_allclose(
        metric.batched(predictions, labels), [metric.value(p, labels) for p in predictions]
    )


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews_correlation"])
def test_smoothed_metrics(name: str, classes: int) -> None:
    """High where guesses are clear, the same for any scale, steadier at the edge."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 200)
    metric = metrics.find(name)
    assert metric.smooth(np.zeros((1, 2, 2)), np.arange(2)) is not None
    noisy = np.eye(classes)[labels] + rng.normal(scale=0.7, size=(30, 200, classes))
    np.testing.assert_allclose(
        metric.smooth(noisy, labels), metric.smooth(37.0 * noisy + 5.0, labels)
    )
    clear = 1000.0 * np.eye(classes)[labels]
    assert metric.smooth(clear[None], labels)[0] > 0.7  # a soft edge is never all right
    nudged = noisy + rng.normal(scale=0.05, size=noisy.shape)
    moved = np.abs(metric.smooth(nudged, labels) - metric.smooth(noisy, labels))
    flipped = np.abs(metric.batched(nudged, labels) - metric.batched(noisy, labels))
    assert moved.mean() < 0.5 * flipped.mean()
    assert np.isfinite(metric.smooth(np.full((1, 200, classes), np.nan), labels)).all()
    assert np.isfinite(metric.smooth(np.zeros((1, 200, classes)), labels)).all()
