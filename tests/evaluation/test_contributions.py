from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from fusetune.evaluation.contributions import contributions, hint
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.objective import LOSS, Objective

NAMES = ("a", "b", "c", "d")


class Remember:
    weights: FusionWeights

    def into_model(self, weights: FusionWeights) -> None:
        self.weights = weights


def evaluator() -> Evaluator:
    """Score: 1 minus the weight of member 2; loss: the weight of member 0."""
    average = Remember()

    def score(model: nn.Module) -> Evaluation:
        w = np.array(average.weights.values)
        return Evaluation({"loss": float(w[0]), "score": float(1.0 - w[2])}, None, 0.0)

    objectives = (LOSS, Objective("score", "maximize"))
    return Evaluator(average, nn.Identity(), score, objectives, EvaluationStore(None, "t"))


def test_each_member_with_weight_is_left_out_once() -> None:
    f = evaluator()
    found = contributions(f, FusionWeights((0.5, 0.25, 0.25, 0.0)))
    assert [c.member for c in found] == [0, 1, 2]
    assert [c.weight for c in found] == [0.5, 0.25, 0.25]
    assert [c.values["score"] for c in found] == pytest.approx([0.5, 1 - 1 / 3, 1.0])
    assert f.evaluations == 4  # the fused model, and three without a member
    assert [c.better for c in found] == [False, False, True]
    assert hint(found, NAMES) == (
        "Fewer members would do: leaving out c loses nothing on validation "
        "(3 members carry weight)."
    )


def test_equal_in_metric_and_loss_can_be_left_out() -> None:
    found = contributions(evaluator(), FusionWeights((0.0, 0.5, 0.0, 0.5)))
    assert [c.better for c in found] == [True, True]
    assert "leaving out any one of b, d loses nothing" in hint(found, NAMES)


def test_a_single_member_has_nothing_to_leave_out() -> None:
    f = evaluator()
    assert contributions(f, FusionWeights.one_hot(1, 4)) == []
    assert f.evaluations == 0
    assert hint([], NAMES) == ""
