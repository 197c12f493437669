import numpy as np

from fusetune.objective import LOSS, Objective, to_maximise
from fusetune.optimization import pareto, selection, simplex
from fusetune.optimization.constraint import Constraint
from fusetune.tasks import metrics as registry

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


def test_consensus_averages_a_third_of_few_and_ten_of_many():
    W = np.eye(6)
    Y = rows(*[(0.1 * i, 1.0 - 0.1 * i) for i in range(6)])  # the earlier the better
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), [0.5, 0.5, 0, 0, 0, 0])
    W = simplex.dirichlet(90, 6, 1.0, np.random.default_rng(0))
    Y = rows(*[(0.01 * i, 1.0 - 0.01 * i) for i in range(90)])
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), W[:10].mean(axis=0))


def test_consensus_goes_by_the_smoothed_metric_where_there_is_one():
    W = np.eye(6)
    Y = rows(*[(0.1 * i, 1.0 - 0.1 * i) for i in range(6)])
    smooth = np.array([0.1, 0.2, 0.9, 0.3, 0.4, 0.8])
    found = selection.consensus(W, Y, OBJECTIVES, smooth)
    np.testing.assert_allclose(found, [0, 0, 0.5, 0, 0, 0.5])
    # A loss alone is the primary objective.
    found = selection.consensus(W, Y[:, :1], [LOSS])
    np.testing.assert_allclose(found, [0.5, 0.5, 0, 0, 0, 0])


def test_the_anchor_is_no_worse_than_the_best_member():
    W = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.3, 0.7], [0.6, 0.4]], dtype=float)
    Y = rows((0.5, 0.70), (0.5, 0.60), (0.5, 0.72), (0.5, 0.71), (0.5, 0.69))
    assert selection.best_member(W, Y, OBJECTIVES) == 0.70
    assert selection.anchor(W, Y, OBJECTIVES) == 2
    smooth = np.array([0.1, 0.9, 0.3, 0.4, 0.95])
    assert selection.anchor(W, Y, OBJECTIVES, smooth) == 3
    assert selection.anchor(W[2:], Y[2:], OBJECTIVES, smooth[2:]) is None  # no member there


def test_consensus_counts_a_w_once():
    W = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7],
                  [0.4, 0.6]])  # fmt: skip
    Y = rows((0.1, 0.9), (0.1, 0.9), (0.2, 0.8), *[(0.9, 0.1)] * 4)
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), [0.5, 0.5])


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


METRICS = {"mrpc": "f1", "cola": "matthews_correlation"}


def gains(shared, task, splits=20, candidates=90):
    """Mean gain on test over the best single member, by rule, over random resplits."""
    logits, labels, n = landscape(shared / "data/landscapes", task)
    metric = registry.find(METRICS[task])
    objectives = [LOSS, Objective(metric.name, "maximize")]
    k, rng = len(logits), np.random.default_rng(0)
    half = (candidates - k - 1) // 2
    total = dict.fromkeys(("best", "consensus"), 0.0)
    for split in range(splits):
        W = np.vstack([np.eye(k), np.full((1, k), 1 / k), simplex.dirichlet(half, k, 0.3, rng),
                       simplex.faces(half, k, rng)])  # fmt: skip
        order = np.random.default_rng((41, split)).permutation(len(labels))
        validation, test = order[:n], order[n:]
        seen = np.tensordot(W, logits[:, validation], 1)
        value = metric.batched(seen, labels[validation])
        Y = np.column_stack([np.zeros(len(W)), value])
        smooth = metric.smooth(seen, labels[validation])
        chosen = np.vstack([
            W[selection.best(Y[:k], objectives)],
            W[selection.best(Y, objectives)],
            selection.consensus(W, Y, objectives, smooth),
        ])  # fmt: skip
        found = metric.batched(np.tensordot(chosen, logits[:, test], 1), labels[test])
        for rule, value in zip(total, found[1:], strict=True):
            total[rule] += 100.0 * (value - found[0]) / splits
    return total


def test_consensus_gains_more_on_test_than_the_highest_validation_metric(shared):
    """Mixtures of logits stand in for fused models; as many as a run evaluates."""
    for task in METRICS:
        found = gains(shared, task)
        assert found["consensus"] > max(found["best"], 0.0), task


def test_choosing_from_the_front_only():
    assert selection.knee(Y, OBJECTIVES) in pareto.front(Y)


def test_where_metrics_are_equal_every_rule_goes_by_the_loss():
    W = np.vstack([np.eye(3), simplex.dirichlet(9, 3, 1.0, np.random.default_rng(0))])
    losses = [0.5, 0.2, 0.6, 0.9, 0.1, 0.8, 0.15, 0.7, 0.05, 0.95, 0.4, 0.3]
    Y = rows(*[(loss, 1.0) for loss in losses])
    assert selection.best(Y, OBJECTIVES) == 8
    assert selection.knee(Y, OBJECTIVES) == 8
    assert selection.posterior(W, Y, OBJECTIVES) == 8
    assert selection.constrained(Y, OBJECTIVES, Constraint.parse("f1 >= 1, max f1")) == 8
    assert selection.best_member_row(W, Y, OBJECTIVES) == 1
    expected = W[[8, 4, 6, 1]].mean(axis=0)
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES), expected)
    same = np.full(len(W), 0.7)
    np.testing.assert_allclose(selection.consensus(W, Y, OBJECTIVES, same), expected)
    assert selection.anchor(W, Y, OBJECTIVES) == 8
    Y = rows(*[(loss + 0.2 * (i > 2), 1.0) for i, loss in enumerate(losses)])  # members better
    assert selection.anchor(W, Y, OBJECTIVES) == 1


def test_without_a_loss_the_first_objective_tells_equal_ones_apart():
    speed = Objective("speed", "maximize")
    Y = np.array([[1.0, 0.5], [2.0, 0.5], [3.0, 0.4]])
    assert pareto.choose("best", Y, [speed, F1]) == 1
