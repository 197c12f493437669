"""Models side by side: the values of one after the other, the same after a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusetune.evaluation import candidates
from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.tasks.classification import Regression, SequenceClassification
from fusetune.tasks.task import Encoded
from tests import tiny

K = 4
CPU = torch.device("cpu")


def pad(features: Any) -> dict[str, Tensor]:
    longest = max(len(f["input_ids"]) for f in features)
    rows = [f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features]
    ids = torch.tensor(rows)
    labels = torch.tensor([f["labels"] for f in features])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


class Mix:
    """Members in memory; counts how often the model is filled."""

    def __init__(self, model: nn.Module) -> None:
        torch.manual_seed(5)
        self.target = list(model.parameters())
        self.members = [[torch.randn_like(p) * 0.3 for p in self.target] for _ in range(K)]
        self.asked: list[FusionWeights] = []

    def into_model(self, point: Any) -> None:
        self.asked.append(point)
        with torch.no_grad():
            for i, target in enumerate(self.target):
                parts = zip(point.values, self.members, strict=True)
                target.copy_(sum(w * m[i] for w, m in parts if w))  # type: ignore[arg-type]


def problem(
    kind: str = "classes", per_pass: int = 1, folder: Path | None = None, **config: Any
) -> Evaluator:
    torch.manual_seed(0)
    model = tiny.bert(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=1 if kind == "number" else 3,
        **config,
    )
    random = np.random.default_rng(2)
    n = 37
    ids = [random.integers(1, 31, random.integers(1, 12)).tolist() for _ in range(n)]
    labels = random.normal(size=n) if kind == "number" else random.integers(0, 3, n)
    features = tuple({"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True))
    make, metric = (
        (Regression, "pearson") if kind == "number" else (SequenceClassification, "accuracy")
    )
    task = make("t", "nowhere", text=["text"], label="label", metrics=[metric])
    scorer = Scorer(task, Encoded(features, labels, "f"), pad, CPU, token_budget=50)
    store = EvaluationStore(folder, "context")
    return Evaluator(Mix(model), model, scorer, task.objectives, store, per_pass)


def points() -> list[FusionWeights]:
    random = np.random.default_rng(3)
    drawn = [FusionWeights.normalised(w) for w in random.dirichlet(np.ones(K), size=2)]
    return [*starting_points(K), *drawn]


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_side_by_side_and_one_by_one_agree(kind: str) -> None:
    one, many = problem(kind), problem(kind, per_pass=3)
    many.prefetch(points())
    assert many.evaluations == 0  # nobody has asked yet
    filled = len(many.average.asked)
    for point in points():
        a, b = one(point), many(point)
        assert b.values == pytest.approx(a.values, abs=1e-5)
        assert a.outputs is not None
        assert b.outputs is not None
        np.testing.assert_allclose(a.outputs.predictions, b.outputs.predictions, atol=1e-5)
        np.testing.assert_allclose(a.outputs.loss, b.outputs.loss, atol=1e-5)
    # Of seven points two passes took three each; the last one had no company.
    assert filled == 6
    assert many.average.asked[6:] == points()[6:]
    assert many.evaluations == one.evaluations == 7


@pytest.mark.parametrize("lost", [[1], [0, 2, 5], [3, 4]])
def test_after_a_kill_the_bits_are_the_same(tmp_path: Path, lost: list[int]) -> None:
    whole = problem(per_pass=3, folder=tmp_path / "whole")
    whole.prefetch(points())
    resumed = problem(per_pass=3, folder=tmp_path / "resumed")
    for i, point in enumerate(points()[:6]):  # what the killed process had written
        known = whole.store.get(point)
        assert known is not None
        if i not in lost:
            resumed.store.put(point, known)
    resumed.prefetch(points())
    for point in points()[:6]:
        a, b = whole(point), resumed(point)
        assert a.outputs is not None
        assert b.outputs is not None
        assert a.values == b.values
        assert a.outputs.predictions.tobytes() == b.outputs.predictions.tobytes()


def test_one_bad_model_does_not_spoil_its_company() -> None:
    evaluator = problem(per_pass=5)
    good = problem(per_pass=5)
    evaluator.average.members[1][0].fill_(float("nan"))
    for made in (evaluator, good):
        made.prefetch(starting_points(K)[:K])
    bad = evaluator(FusionWeights.one_hot(1, K)).outputs
    assert bad is not None
    assert np.isnan(bad.predictions).all()
    for i in (0, 2, 3):
        w = FusionWeights.one_hot(i, K)
        assert evaluator(w).values == good(w).values


def test_a_model_that_computes_otherwise_in_a_stack_is_taken_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluator, plain = problem(per_pass=3), problem()
    usual = evaluator.score.task.logits
    evaluator.score.task.logits = lambda model, batch: (  # a task with another way for stacks
        usual(model, batch) + (0.5 if not isinstance(model, nn.Module) else 0.0)
    )
    evaluator.prefetch(points())
    assert evaluator.per_pass == 1
    assert "one by one" in caplog.text
    assert evaluator(points()[1]).values == plain(points()[1]).values


def test_the_plan_follows_from_recipe_model_and_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluator = problem()
    model, scorer = evaluator.model, evaluator.score
    assert candidates.plan("auto", model, scorer) == (1, "")  # a CPU
    assert candidates.plan(6, model, scorer) == (6, "")
    size = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(candidates, "total_bytes", lambda device: int(4.5 * size / 0.25))
    found, note = candidates.plan(6, model, scorer)
    assert found == 4
    assert "each pass takes 4" in note
    monkeypatch.setattr(scorer, "device", torch.device("cuda"))
    assert candidates.plan("auto", model, scorer) == (4, "")
    monkeypatch.setattr(candidates, "total_bytes", lambda device: 1 << 40)
    assert candidates.plan("auto", model, scorer) == (16, "")
    monkeypatch.setattr(scorer, "task", SimpleNamespace())  # without logits and losses
    assert candidates.plan("auto", model, scorer) == (1, "")
    assert "one candidate after another" in candidates.plan(2, model, scorer)[1]
