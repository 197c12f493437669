"""Five lines more in a script with a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import fusetune
from tests import tiny

LENGTH = 6


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Whether the first token is above the middle of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (count, LENGTH), generator=generator)
    return [{"input_ids": row.tolist(), "labels": int(row[0] >= 10)} for row in tokens]


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    torch.manual_seed(0)
    config = tiny.bert_config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    return Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            str(tmp_path / "out"),
            max_steps=40,
            learning_rate=1e-2,
            per_device_train_batch_size=16,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows(200, 0),
        eval_dataset=rows(60, 1),
        compute_metrics=compute_metrics,
    )


def test_a_trainer_evaluates_the_candidates(trainer: Trainer, tmp_path: Path) -> None:
    trainer.add_callback(fusetune.MemberCollector(tmp_path / "members", members=4))
    trainer.train()
    last = trainer.evaluate()
    own = trainer.model
    result = fusetune.fuse(
        tmp_path / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss", "accuracy:maximize"],
        budget=10,
    )
    assert trainer.model is own  # it has its own model back, as it was
    assert trainer.evaluate()["eval_loss"] == last["eval_loss"]
    ends = [c for c in result.candidates if c.weights.values[-1] == 1.0]
    assert ends[0].values["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)  # the last step
    best = max(c.values["accuracy"] for c in result.candidates[:4])
    assert result.values["accuracy"] >= best

    folder = result.save(tmp_path / "fused")
    trainer.model = AutoModelForSequenceClassification.from_pretrained(folder)
    again = trainer.evaluate()
    assert again["eval_loss"] == pytest.approx(result.values["loss"], rel=1e-5)


def test_a_trainer_without_rows_to_evaluate_on(trainer: Trainer) -> None:
    trainer.eval_dataset = None
    with pytest.raises(fusetune.FusetuneError, match="no eval_dataset"):
        fusetune.evaluate_with(trainer)
