from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from fusetune.evaluation.bootstrap import bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.racing import (
    LEVEL,
    Dropped,
    StagedScorer,
    entry_chance,
    race,
    sampled,
    stages,
)
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.tasks import find
from fusetune.tasks.task import Encoded, Outputs, Task


def task(kind: str, *metrics: str) -> Task:
    kinds = {"f1": "sequence-classification", "pearson": "regression"}
    return find(kinds[kind])("made", "nowhere", text=["text"], label="label", metrics=metrics)


@pytest.mark.parametrize("labels", [np.arange(203) % 3, np.linspace(0.0, 5.0, 203) ** 2])
def test_stages_are_disjoint_whole_and_stratified(labels: NDArray[Any]) -> None:
    parts = stages(labels, (0.25, 0.5), seed=4)
    assert sorted(np.concatenate(parts)) == list(range(203))
    assert [len(p) for p in parts] == pytest.approx([51, 51, 102], abs=5)
    for part in parts:
        assert labels[part].mean() == pytest.approx(labels.mean(), rel=0.1)
    again = stages(labels, (0.25, 0.5), seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ValueError, match="must increase"):
        stages(labels, (0.5, 0.25))


def landscape(kind: str, seed: int, n: int = 400, candidates: int = 50) -> tuple[Any, ...]:
    """Models of one family, some clearly worse than others, and what they say of n rows."""
    random = np.random.default_rng(seed)
    hardness = random.normal(size=n)
    if kind == "pearson":
        labels: NDArray[Any] = random.normal(size=n)
        skill = random.uniform(0.3, 1.5, size=candidates)
        noise = random.normal(size=(candidates, n)) * 0.3 + hardness
        predictions = (labels + noise * skill[:, None])[..., None].astype(np.float32)
    else:
        labels = (random.random(n) < 0.35).astype(np.int64)
        skill = random.uniform(-0.5, 2.0, size=candidates)
        noise = random.normal(size=(candidates, n)) * 0.5
        margin = (skill[:, None] - hardness + noise) * np.where(labels == 1, 1.0, -1.0)
        predictions = np.stack([-margin, margin], axis=2).astype(np.float32)
    return predictions, labels


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [("f1", ("f1",)), ("f1", ("matthews_correlation", "accuracy")), ("pearson", ("pearson",))],
)
def test_what_is_dropped_is_outside_the_front(kind: str, metrics: tuple[str, ...]) -> None:
    made = task(kind, *metrics)
    dropped = wrong = outside = 0
    for seed in range(6):
        predictions, labels = landscape(kind, seed)
        said = []
        for p in predictions:
            tensor = torch.from_numpy(p), torch.from_numpy(labels)
            losses = made.losses(*tensor)  # type: ignore[attr-defined]
            said.append(Outputs(losses.float().numpy(), p))
        values = np.array(
            [[o.sign * made.score(s, labels)[o.name] for o in made.objectives] for s in said]
        )
        first = _front(values[:20])
        seen = np.sort(stages(labels, (0.25,), seed)[0])
        counts = bootstrap_counts(len(seen), 500, seed)
        on_part = [
            sampled(_part(s, seen), labels[seen], made.resample, made.objectives, counts)
            for s in said
        ]
        for i in range(20, len(said)):
            truly_outside = any(_dominates(values[j], values[i]) for j in first)
            chance = entry_chance(on_part[i], [on_part[j] for j in first])
            outside += truly_outside
            if chance <= LEVEL:
                dropped += 1
                wrong += not truly_outside
    assert dropped >= 0.25 * outside  # it saves something
    assert wrong <= 0.05 * dropped


def _dominates(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((a >= b).all() and (a > b).any())


def _front(values: NDArray[np.float64]) -> list[int]:
    return [i for i, v in enumerate(values) if not any(_dominates(o, v) for o in values)]


def _part(outputs: Outputs, rows: NDArray[np.int64]) -> Outputs:
    return Outputs(outputs.loss[rows], outputs.predictions[rows])


def test_a_model_that_is_not_finite_is_not_dropped_in_silence() -> None:
    labels = np.array([0, 1] * 10)
    good = Outputs(np.zeros(20, np.float32), np.eye(2, dtype=np.float32)[labels])
    broken = Outputs(np.full(20, np.nan, np.float32), good.predictions)
    made = task("f1", "f1")
    counts = bootstrap_counts(20, 50, 0)
    first, second = (
        sampled(outputs, labels, made.resample, made.objectives, counts)
        for outputs in (broken, good)
    )
    assert entry_chance(first, [second]) == 1.0
    assert entry_chance(second, []) == 1.0
    assert entry_chance(second - 0.1, [second]) == 0.0


class Setting:
    """Two-layer models whose head is θ̄(w), scored on 120 made-up texts of several lengths."""

    def __init__(self, scorer: type[Scorer] = StagedScorer) -> None:
        torch.manual_seed(0)
        self.model: PreTrainedModel = BertForSequenceClassification(
            BertConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                initializer_range=0.4,
            )
        )
        random = np.random.default_rng(0)
        texts = [random.integers(1, 64, size=random.integers(4, 20)) for _ in range(120)]
        labels = random.integers(0, 2, size=120)
        for text, label in zip(texts, labels, strict=True):
            text[1:3] = 1 + label
        features = tuple(
            {"input_ids": t.tolist(), "attention_mask": [1] * len(t), "labels": int(y)}
            for t, y in zip(texts, labels, strict=True)
        )
        self.task = task("f1", "accuracy")
        self.scorer = scorer(
            self.task, Encoded(features, labels, "made"), _collate, torch.device("cpu")
        )
        self.teach()
        self.applied = 0

    def teach(self) -> None:
        """The head that separates the labels best, by least squares."""
        self.model.eval()
        labels = torch.from_numpy(self.scorer.encoded.labels)
        features = torch.empty(len(labels), 32)
        with torch.no_grad():
            for batch in self.scorer.batches:
                inputs = {n: v for n, v in batch.inputs.items() if n != "labels"}
                features[batch.rows.copy()] = self.model.base_model(**inputs).pooler_output
        signs = (2.0 * labels - 1.0).double()[:, None]
        found = torch.linalg.lstsq(features.double(), signs).solution.float().T
        self.head = {"weight": torch.cat([-found, found]), "bias": torch.zeros(2)}

    def into_model(self, weights: FusionWeights) -> None:
        self.applied += 1
        factor = weights.values[0] - weights.values[1]
        with torch.no_grad():
            for name, parameter in self.model.classifier.named_parameters():
                parameter.copy_(self.head[name] * factor)

    def evaluator(self) -> Evaluator:
        store = EvaluationStore(None, "made")
        return Evaluator(self, self.model, self.scorer, self.task.objectives, store)


def _collate(features: Any) -> dict[str, torch.Tensor]:
    width = max(len(f["input_ids"]) for f in features) + 3
    padded = {
        name: torch.tensor([f[name] + [0] * (width - len(f[name])) for f in features])
        for name in ("input_ids", "attention_mask")
    }
    return padded | {"labels": torch.tensor([f["labels"] for f in features])}


GOOD, BAD = FusionWeights((1.0, 0.0)), FusionWeights((0.0, 1.0))
NEAR = FusionWeights((0.98, 0.02))


def test_survivors_have_the_values_of_the_plain_way() -> None:
    setting, plain = Setting(), Setting(Scorer)
    plain.model.load_state_dict(setting.model.state_dict())
    evaluator = setting.evaluator()
    evaluator(GOOD)
    raced = race(evaluator, NEAR, [GOOD])
    assert isinstance(raced, Evaluation)
    setting.into_model(NEAR)
    unraced = setting.scorer(setting.model)
    assert raced.outputs is not None
    assert unraced.outputs is not None
    assert raced.values == unraced.values
    assert np.array_equal(raced.outputs.predictions, unraced.outputs.predictions)
    plain.model.load_state_dict(setting.model.state_dict())
    expected = plain.scorer(plain.model)
    assert raced.values == pytest.approx(expected.values, abs=1e-6)
    assert evaluator.evaluations == 2


def test_a_dropped_candidate_is_nowhere_kept() -> None:
    setting = Setting()
    evaluator = setting.evaluator()
    evaluator(GOOD)
    raced = race(evaluator, BAD, [GOOD])
    assert isinstance(raced, Dropped)
    assert raced.examples in (30, 60)  # a quarter or half of the split
    assert raced.chance <= LEVEL
    assert set(raced.values) == {"loss", "accuracy"}
    assert evaluator.evaluations == 1
    assert evaluator.store.get(BAD) is None
    again = race(evaluator, BAD, [GOOD])
    assert isinstance(again, Dropped)
    assert again.values == raced.values
    assert isinstance(race(evaluator, BAD, []), Evaluation)  # no rivals: the whole split
    applied = setting.applied
    assert isinstance(race(evaluator, BAD, [GOOD]), Evaluation)  # known: nothing to save
    assert setting.applied == applied


def test_without_stages_a_race_is_an_evaluation(tmp_path: Path) -> None:
    evaluator = Setting(Scorer).evaluator()
    evaluator(GOOD)
    assert isinstance(race(evaluator, BAD, [GOOD]), Evaluation)
