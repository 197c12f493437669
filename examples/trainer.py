"""Five lines more in a script with a Trainer: a small text classifier, its members fused.

Run it with `python examples/trainer.py --out runs/trainer`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import fusetune

LENGTH, TOKENS = 8, 20


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Made up: whether the first token is in the upper half of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TOKENS, (count, LENGTH), generator=generator)
    return [{"input_ids": row.tolist(), "labels": int(row[0] >= TOKENS // 2)} for row in tokens]


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The share of rows that are right."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/trainer"))
    parser.add_argument("--steps", type=int, default=120)
    out, steps = vars(parser.parse_args()).values()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    arguments = TrainingArguments(
        str(out / "trainer"),
        max_steps=steps,
        learning_rate=1e-2,
        per_device_train_batch_size=16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        BertForSequenceClassification(config),
        arguments,
        train_dataset=rows(400, 0),
        eval_dataset=rows(100, 1),
        compute_metrics=compute_metrics,
    )

    trainer.add_callback(fusetune.MemberCollector(out / "members", members=6))  # 1
    trainer.train()
    result = fusetune.fuse(  # 2
        out / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss", "accuracy:maximize"],
    )
    result.save(out / "fused")  # 3
    result.report(out / "report.html", title="First token")  # 4
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
