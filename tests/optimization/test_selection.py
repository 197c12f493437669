import numpy as np
import pytest
from sklearn import metrics

from fusetune.objective import LOSS, Objective, to_maximise
from fusetune.optimization import pareto, selection, simplex
from fusetune.optimization.constraint import Constraint

F1 = Objective("f1", "maximize")
OBJECTIVES = [LOSS, F1]


def rows(*pairs):
    return to_maximise([{"loss": loss, "f1": f1} for loss, f1 in pairs], OBJECTIVES)


# A row per w:  lowest loss; on the front between; highest metric; beaten in both.
Y = rows((0.30, 0.70), (0.32, 0.80), (0.50, 0.82), (0.52, 0.60))


def test_best_and_knee():
    assert selection.best(Y, OBJECTIVES) == 2
    assert selection.knee(Y, OBJECTIVES) == 1


def test_constrained_takes_the_best_that_keeps_the_bounds():
    def chosen(text):
        return selection.constrained(Y, OBJECTIVES, Constraint.parse(text))

    assert chosen("loss <= 0.4, max f1") == 1
    assert chosen("loss <= 0.31, max f1") == 0
    assert chosen("f1 >= 0.75, min loss") == 1
    assert chosen("loss <= 0.6, max f1") == selection.best(Y, OBJECTIVES)
    assert chosen("loss <= 0.2, max f1") is None


def test_nearest_breaks_the_bounds_least():
    constraint = Constraint.parse("loss <= 0.2, max f1")
    assert selection.nearest(Y, OBJECTIVES, constraint) == [0, 1, 2]


def test_consensus_score_by_hand():
    Y = rows((1.0, 0.0), (3.0, 1.0))  # standardised: loss ∓1, metric ∓1
    np.testing.assert_allclose(selection.consensus_score(Y, OBJECTIVES), [2 - 1, -2 + 1])
    # A loss alone is the primary objective, and counts once.
    np.testing.assert_allclose(selection.consensus_score(Y[:, :1], [LOSS]), [1, -1])
    # Nothing that varies: no deviation to divide by.
    assert (selection.consensus_score(rows((1, 1), (1, 1)), OBJECTIVES) == 0).all()


def test_consensus_averages_a_third_of_few_and_ten_of_many():
    W = np.eye(6)
    Y = rows(*[(0.1 * i, 1.0 - 0.1 * i) for i in range(6)])  # the earlier the better
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), [0.5, 0.5, 0, 0, 0, 0])
    W = simplex.dirichlet(90, 6, 1.0, np.random.default_rng(0))
    Y = rows(*[(0.01 * i, 1.0 - 0.01 * i) for i in range(90)])
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), W[:10].mean(axis=0))


def test_consensus_counts_a_w_once():
    W = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7],
                  [0.4, 0.6]])  # fmt: skip
    Y = rows((0.1, 0.9), (0.1, 0.9), (0.2, 0.8), *[(0.9, 0.1)] * 4)
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), [0.5, 0.5])


def test_a_diverged_member_does_not_silence_the_loss():
    """With a loss of 1e6 in the deviation, all other losses would look alike."""
    good = [(0.50 - 0.01 * i, 0.80 + 0.001 * i) for i in range(9)]
    W = np.vstack([simplex.dirichlet(9, 3, 1.0, np.random.default_rng(0)), [[0, 0, 1]]])
    whole = selection.consensus_score(rows(*good, (1e6, 0.80)), OBJECTIVES)
    assert np.ptp(whole[:9]) > 2.0
    assert selection.consensus(W, rows(*good, (1e6, 0.80)), OBJECTIVES)[2] < 1.0


def test_posterior_smooths_what_the_highest_value_owes_to_luck():
    """One value stands out of a smooth bowl; its neighbours say that it is luck."""
    target = np.array([0.6, 0.3, 0.1])
    W = simplex.dirichlet(80, 3, 1.0, np.random.default_rng(0))
    distance = ((W - target) ** 2).sum(axis=1)
    noise = np.random.default_rng(1).normal(0.0, 0.05, size=80)
    Y = np.column_stack([np.zeros(80), noise - distance])
    lucky = int(np.argsort(distance)[40])
    Y[lucky, 1] = 0.3
    assert selection.best(Y, OBJECTIVES) == lucky
    assert distance[selection.posterior(W, Y, OBJECTIVES)] < 0.5 * distance[lucky]


def landscape(path, task):
    """Members' logits over all rows, labels, and the metric of the whole task."""
    with np.load(path / f"{task}.npz") as saved:
        logits = np.concatenate([saved["validation_logits"], saved["test_logits"]], axis=1)
        labels = np.concatenate([saved["validation_labels"], saved["test_labels"]])
        return logits.astype(np.float64), labels, saved["validation_labels"].size


def values_on(part, margins, labels, metric):
    """Loss and metric, to be maximised, of n models with margins `n x rows`, on some rows."""
    rows, positive = margins[:, part], labels[part] == 1
    loss = np.logaddexp(0.0, np.where(positive, -rows, rows)).mean(axis=1)
    said = (rows > 0).astype(float)
    tp, fp = said @ positive, said @ ~positive
    return np.column_stack([-loss, metric(tp, fp, positive.sum() - tp, (~positive).sum() - fp)])


def f1(tp, fp, fn, tn):
    return 2.0 * tp / np.maximum(2.0 * tp + fp + fn, 1.0)


def matthews(tp, fp, fn, tn):
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.where(below > 0, (tp * tn - fp * fn) / np.maximum(below, 1.0), 0.0)


@pytest.mark.parametrize(
    ("metric", "reference"),
    [(f1, metrics.f1_score), (matthews, metrics.matthews_corrcoef)],
)
def test_the_metrics_of_the_landscapes_are_the_usual_ones(metric, reference):
    rng = np.random.default_rng(0)
    margins, labels = rng.normal(size=(1, 80)), rng.integers(2, size=80)
    found = values_on(np.arange(80), margins, labels, metric)
    assert found[0, 1] == pytest.approx(reference(labels, margins[0] > 0))
    assert -found[0, 0] == pytest.approx(
        metrics.log_loss(labels, 1 / (1 + np.exp(-margins[0])))
    )


def gains(shared, task, metric, splits=20, candidates=1200):
    """Mean gain on test over the best single member, by rule, over random resplits."""
    logits, labels, n = landscape(shared / "data/landscapes", task)
    k, third = len(logits), candidates // 3
    rng = np.random.default_rng(0)
    drawn = [simplex.dirichlet(third, k, concentration, rng) for concentration in (0.3, 1.0)]
    W = np.vstack([np.eye(k), np.full((1, k), 1 / k), *drawn, simplex.faces(third, k, rng)])
    margins = W @ (logits[..., 1] - logits[..., 0])
    total = {"best": 0.0, "consensus": 0.0}
    for split in range(splits):
        order = np.random.default_rng((41, split)).permutation(len(labels))
        validation, test = order[:n], order[n:]
        Y = values_on(validation, margins, labels, metric)
        chosen = np.vstack([
            W[selection.best(Y[:k], OBJECTIVES)],
            W[selection.best(Y, OBJECTIVES)],
            selection.consensus(W, Y, OBJECTIVES),
        ])  # fmt: skip
        found = values_on(test, chosen @ (logits[..., 1] - logits[..., 0]), labels, metric)
        for rule, value in zip(total, found[1:, 1], strict=True):
            total[rule] += 100.0 * (value - found[0, 1]) / splits
    return total


def test_consensus_gains_more_on_test_than_the_highest_validation_metric(shared):
    """Mixtures of logits stand in for fused models: 1,216 of them, as many as recorded."""
    found = [gains(shared, "mrpc", f1), gains(shared, "cola", matthews)]
    best, consensus = (np.mean([g[rule] for g in found]) for rule in ("best", "consensus"))
    assert consensus > best
    assert consensus > 0.0


def test_choosing_from_the_front_only():
    assert selection.knee(Y, OBJECTIVES) in pareto.front(Y)
