from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fusetune.pipeline import run
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

GOOD = ("fine", "lovely", "bright", "kind")
BAD = ("dull", "awful", "grim", "rude")
OTHER = ("the", "film", "was", "quite", "and", "story", "of", "music", "a", "very")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of two layers with its tokenizer, built from a configuration."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)
    torch.manual_seed(1)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts whose label follows from two of their words, except for some noise."""
    folder = tmp_path_factory.mktemp("data") / "sentiment"
    folder.mkdir()
    draw = random.Random(0)
    for split, n in {"train": 320, "validation": 120, "test": 120}.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(n):
                marks = [draw.choice(GOOD + BAD) for _ in range(3)]
                good = sum(mark in GOOD for mark in marks) >= 2
                label = good if draw.random() > 0.1 else not good
                words = [*marks, *draw.choices(OTHER, k=draw.randint(2, 8))]
                draw.shuffle(words)
                row = {"text": " ".join(words), "label": "good" if label else "bad"}
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model: Path, sentiment: Path) -> str:
    """A whole run in a few seconds."""
    return f"""
seed: 41
task:
  data: {sentiment}
  text: [text]
  label: label
  metrics: [accuracy, matthews_correlation]
model: {{name: {tiny_model}, precision: float32, device: cpu}}
search:
  trials: 4
  objective: best_member
  variant: {{freeze_layers: 1}}
  epochs: 1
  space:
    learning_rate: {{low: 1.0e-3, high: 1.0e-2, log: true}}
    weight_decay: {{low: 0.0, high: 0.1}}
    per_device_train_batch_size: {{choices: [8, 16]}}
train:
  epochs: 6
  members: 5
  collect_from: 0.5
  arguments: {{lr_scheduler_type: constant_with_warmup, warmup_ratio: 0.2}}
fuse:
  evaluations: 20
"""


QUICK = [
    "search.trials=0",
    "train.epochs=2",
    "train.members=4",
    "train.arguments={learning_rate: 1.0e-3}",
    "fuse.evaluations=10",
]


@pytest.fixture(scope="session")
def quick_run(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run that was not searched for; tests leave it as it is."""
    return run(parse(tiny_recipe, QUICK), tmp_path_factory.mktemp("quick") / "tiny")
