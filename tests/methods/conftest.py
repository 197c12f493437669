"""Small real problems: members on the disk, a scorer of a split, an evaluator of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.average import ResidentAverage
from fusetune.members.pool import MemberPool
from fusetune.objective import Objective
from fusetune.tasks.classification import Regression, SequenceClassification
from fusetune.tasks.task import Encoded
from fusetune.tasks.text import TextTask
from tests import tiny


class Linear(nn.Module):
    """Logits are linear in the parameters, so a mixture of logits is the fused model's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs, bias=False)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(input_ids))


def stack(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor(np.array([f[name] for f in features])) for name in features[0]}


def make_scorer(
    task: TextTask, inputs: np.ndarray, labels: np.ndarray, tokens: int | None
) -> Scorer:
    features = tuple({"input_ids": x, "labels": y} for x, y in zip(inputs, labels, strict=True))
    encoded = Encoded(features, labels, "test")
    return Scorer(task, encoded, stack, torch.device("cpu"), token_budget=tokens)


def make_evaluator(
    pool: MemberPool, model: nn.Module, scorer: Scorer, objectives: Sequence[Objective]
) -> Evaluator:
    average = ResidentAverage(pool, model)
    return Evaluator(average, model, scorer, objectives, EvaluationStore(None, "test"))


def folders(place: Path) -> list[Path]:
    """Of all members, also of equal ones, which `MemberPool.open` counts once."""
    return sorted(place.iterdir(), key=lambda path: int(path.name.removeprefix("step-")))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def linear(tmp_path: Path) -> Callable[..., tuple[MemberPool, Evaluator]]:
    """(members `k x outputs x inputs`, inputs `n x d`, labels `n`) → pool and evaluator.

    Float labels make a regression with squared error, integers a classification.
    """

    def build(
        members: np.ndarray,
        inputs: np.ndarray,
        labels: np.ndarray,
        *,
        objectives: Sequence[Objective] | None = None,
        tokens: int | None = None,
    ) -> tuple[MemberPool, Evaluator]:
        for i, theta in enumerate(members):
            folder = tmp_path / "linear" / f"step-{i + 1}"
            folder.mkdir(parents=True)
            tensors = {"head.weight": torch.tensor(theta, dtype=torch.float32)}
            save_file(tensors, folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps({"model_type": "linear"}))
        number = np.issubdtype(labels.dtype, np.floating)
        kind, metric = (Regression, "pearson") if number else (SequenceClassification, "f1")
        task = kind("test", "unused", text=["text"], label="label", metrics=[metric])
        pool = MemberPool.of(folders(tmp_path / "linear"))
        model = Linear(members.shape[2], members.shape[1])
        scorer = make_scorer(task, inputs.astype(np.float32), labels, tokens)
        return pool, make_evaluator(pool, model, scorer, objectives or task.objectives)

    return build


@pytest.fixture
def bert(tmp_path: Path) -> Callable[..., tuple[MemberPool, Evaluator]]:
    """Tiny BERT members around one model, which labelled the rows.

    Args of the function: how far each member is from that model; the objectives.
    """

    def build(
        distances: Sequence[float], *, objectives: Sequence[Objective] | None = None
    ) -> tuple[MemberPool, Evaluator]:
        config = tiny.bert_config(
            vocab_size=31,
            hidden_size=8,
            intermediate_size=12,
            max_position_embeddings=10,
            initializer_range=0.3,
        )
        torch.manual_seed(0)
        centre = BertForSequenceClassification(config).eval()
        ids = torch.randint(0, 31, (60, 8))
        with torch.inference_mode():
            logits = centre(input_ids=ids).logits
        margin = logits[:, 1] - logits[:, 0]
        labels = (margin > margin.median()).long().numpy()
        for i, distance in enumerate(distances):
            member = BertForSequenceClassification(config)
            with torch.no_grad():
                for own, common in zip(member.parameters(), centre.parameters(), strict=True):
                    own.copy_(common + distance * torch.randn(common.shape))
            member.save_pretrained(tmp_path / "bert" / f"step-{i + 1}")
        task = SequenceClassification(
            "test", "unused", text=["text"], label="label", metrics=["accuracy"]
        )
        pool = MemberPool.of(folders(tmp_path / "bert"))
        scorer = make_scorer(task, ids.numpy(), labels, tokens=80)
        model = BertForSequenceClassification(config)
        return pool, make_evaluator(pool, model, scorer, objectives or task.objectives)

    return build
