"""Members from SetFit's trainer: a sentence encoder from few rows, a classifier on it.

Run it with `python examples/setfit_texts.py --out runs/setfit`.
Needs `pip install setfit`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

import fusetune

GOOD, BAD = ("fine", "lovely", "bright", "kind"), ("dull", "awful", "grim", "rude")
OTHER = ("the", "film", "was", "quite", "a", "story")


def rows(count: int, seed: int) -> Dataset:
    """Made up: a text is good if most of its three marks are."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        marks = [draw.choice(GOOD + BAD) for _ in range(3)]
        words = [*marks, *draw.choices(OTHER, k=3)]
        draw.shuffle(words)
        good = sum(mark in GOOD for mark in marks) >= 2
        found.append({"text": " ".join(words), "label": int(good)})
    return Dataset.from_list(found)


def make_model(folder: Path) -> SetFitModel:
    """A small encoder on the disk, in the place of a pretrained one, and a classifier."""
    words = ("[PAD]", "[UNK]", *GOOD, *BAD, *OTHER)
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    body = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu")
    return SetFitModel(model_body=body, model_head=LogisticRegression(), labels=["bad", "good"])


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/setfit"))
    parser.add_argument("--steps", type=int, default=40)
    out, steps = vars(parser.parse_args()).values()
    set_seed(0)
    trainer = Trainer(
        make_model(out / "pretrained"),
        TrainingArguments(
            str(out / "trainer"),
            batch_size=16,
            max_steps=steps,
            body_learning_rate=3e-3,
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        ),
        train_dataset=rows(24, 0),
        eval_dataset=rows(80, 1),
        metric=lambda predicted, given: {
            "accuracy": sum(int(p) == int(g) for p, g in zip(predicted, given, strict=True))
            / len(given)
        },
    )

    trainer.add_callback(fusetune.MemberCollector(out / "members", members=4))  # 1
    trainer.train()
    evaluate = fusetune.evaluate_with(trainer)  # 2
    result = fusetune.fuse(  # 3
        out / "members",
        evaluate=evaluate,
        objectives=["accuracy:maximize"],
        model_init=lambda: trainer.model.model_body,
    )
    evaluate(result.model())  # 4: the encoder and a classifier on it
    trainer.model.save_pretrained(str(out / "fused"))  # 5
    result.report(out / "report.html", title="Marks")
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
