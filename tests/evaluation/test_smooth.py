"""A score with little noise: of an evaluation, of changes added up, of bootstrap samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.smooth import Score
from fusetune.evaluation.store import EvaluationStore
from fusetune.tasks.classification import Regression, SequenceClassification
from fusetune.tasks.task import Encoded, Outputs
from fusetune.tasks.text import TextTask

N = 200
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(2, size=N)


class Nothing:
    def into_model(self, point: object) -> None:
        raise AssertionError("nothing is averaged here")


def evaluator(task: TextTask, labels: np.ndarray) -> Evaluator:
    features = tuple({"input_ids": np.zeros(1), "labels": y} for y in labels)
    scorer = Scorer(
        task, Encoded(features, labels, "test"), lambda rows: {}, torch.device("cpu")
    )
    return Evaluator(
        Nothing(), nn.Identity(), scorer, task.objectives, EvaluationStore(None, "x")
    )


def classification() -> Evaluator:
    task = SequenceClassification(
        "test", "unused", text=["text"], label="label", metrics=["accuracy"]
    )
    return evaluator(task, LABELS)


def evaluation(of: Evaluator, predictions: np.ndarray) -> Evaluation:
    outputs = Outputs(np.zeros(len(predictions), np.float32), predictions.astype(np.float32))
    scorer = of.scorer("the test")
    return Evaluation(scorer.task.score(outputs, scorer.encoded.labels), outputs, 0.0)


def logits(skill: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(N, 2))
    return noise + skill * np.eye(2)[LABELS]


def test_changes_add_up() -> None:
    of = classification()
    score = Score(of)
    z = [logits(s, i) for i, s in enumerate((0.5, 1.0, 0.0))]
    base, *moved = [evaluation(of, each) for each in z]
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.25, 0.5]])
    found = score.of_shifts(base, moved, steps)
    sums = [z[0] + a * (z[1] - z[0]) + b * (z[2] - z[0]) for a, b in steps]
    assert found == pytest.approx([score(evaluation(of, each)) for each in sums], abs=1e-6)
    assert score(base) != base.values["accuracy"]  # it is the smoothed one
    assert score(base) == pytest.approx(base.values["accuracy"], abs=0.05)


def test_samples_are_of_the_same_rows() -> None:
    of = classification()
    score = Score(of)
    one, other = evaluation(of, logits(1.0, 1)), evaluation(of, logits(1.0, 2))
    found = score.samples([one, one, other], seed=3)
    assert found is not None
    assert found.shape == (500, 3)
    assert found[:, 0].tolist() == found[:, 1].tolist()
    assert found.mean(axis=0) == pytest.approx([score(e) for e in (one, one, other)], abs=0.01)
    # Less than the deviation of a share of N rows: that is what smoothing is for.
    p = one.values["accuracy"]
    assert 0.4 < found[:, 0].std() / (p * (1 - p) / N) ** 0.5 < 0.9


def test_without_a_smoothed_form_the_metric_itself() -> None:
    labels = RANDOM.normal(size=N)
    task = Regression("test", "unused", text=["text"], label="label", metrics=["pearson"])
    of = evaluator(task, labels)
    near = evaluation(of, labels[:, None] + RANDOM.normal(size=(N, 1)))
    score = Score(of)
    assert score(near) == near.values["pearson"]
    found = score.samples([near], seed=0)
    assert found is not None
    assert found.mean() == pytest.approx(score(near), abs=0.02)
