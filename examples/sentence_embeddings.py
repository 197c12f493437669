"""Members from sentence-transformers' trainer: embeddings judged by an evaluator.

Run it with `python examples/sentence_embeddings.py --out runs/embeddings`.
Needs `pip install sentence-transformers`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
)
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import fusetune

TOPICS = (("apple", "pear", "plum", "fig"), ("car", "bus", "tram", "bike"))
OTHER = ("a", "the", "some", "this")


def pairs(count: int, seed: int) -> Dataset:
    """Made up: two texts are alike if their nouns are of one topic."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        topics = [draw.randrange(2), draw.randrange(2)]
        texts = [f"{draw.choice(OTHER)} {draw.choice(TOPICS[t])}" for t in topics]
        rows.append({"a": texts[0], "b": texts[1], "score": float(topics[0] == topics[1])})
    return Dataset.from_list(rows)


def make_model(folder: Path) -> SentenceTransformer:
    """A small encoder on the disk, in the place of a pretrained one, and a mean over tokens."""
    words = ("[PAD]", "[UNK]", *OTHER, *TOPICS[0], *TOPICS[1])
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    BertModel(config).save_pretrained(folder)
    encoder = Transformer(str(folder))
    return SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu")


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--steps", type=int, default=60)
    out, steps = vars(parser.parse_args()).values()
    torch.manual_seed(0)
    model = make_model(out / "pretrained")
    validation = pairs(60, 1)
    arguments = SentenceTransformerTrainingArguments(
        str(out / "trainer"),
        max_steps=steps,
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=pairs(200, 0),
        eval_dataset=validation,
        loss=CosineSimilarityLoss(model),
        evaluator=EmbeddingSimilarityEvaluator(
            validation["a"], validation["b"], validation["score"]
        ),
    )

    trainer.add_callback(fusetune.MemberCollector(out / "members", members=4))  # 1
    trainer.train()
    result = fusetune.fuse(  # 2
        out / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss", "spearman_cosine:maximize"],
        model_init=lambda: trainer.model,
    )
    result.save(out / "fused")  # 3: loads with SentenceTransformer(…)
    result.report(out / "report.html", title="Topics")  # 4
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
