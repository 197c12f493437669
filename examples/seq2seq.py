"""Members from a Seq2SeqTrainer that generates to evaluate: a small T5 that copies.

Run it with `python examples/seq2seq.py --out runs/seq2seq`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

import fusetune

PAD, END, LENGTH, TOKENS = 0, 1, 3, 12


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Made up: the target is the input."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, TOKENS, (count, LENGTH), generator=generator).tolist()
    return [{"input_ids": [*row, END], "labels": [*row, END]} for row in tokens]


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The share of tokens of the targets that were generated in their place."""
    generated = prediction.predictions[:, 1 : 1 + LENGTH]
    return {"tokens": float((generated == prediction.label_ids[:, :LENGTH]).mean())}


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/seq2seq"))
    parser.add_argument("--steps", type=int, default=200)
    out, steps = vars(parser.parse_args()).values()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=TOKENS,
        d_model=24,
        d_kv=12,
        d_ff=48,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    arguments = Seq2SeqTrainingArguments(
        str(out / "trainer"),
        max_steps=steps,
        learning_rate=1e-2,
        per_device_train_batch_size=32,
        predict_with_generate=True,
        generation_max_length=LENGTH + 2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        T5ForConditionalGeneration(config),
        arguments,
        train_dataset=rows(600, 0),
        eval_dataset=rows(60, 1),
        compute_metrics=compute_metrics,
    )

    trainer.add_callback(fusetune.MemberCollector(out / "members", members=4))  # 1
    trainer.train()
    result = fusetune.fuse(  # 2
        out / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss", "tokens:maximize"],
    )
    result.save(out / "fused")  # 3
    result.report(out / "report.html", title="Copying")  # 4
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
