"""A whole run in a few seconds of one core: a model from a configuration, and made-up data."""

from __future__ import annotations

import json
import random
from pathlib import Path

GOOD = ("fine", "lovely", "bright", "kind")
BAD = ("dull", "awful", "grim", "rude")
OTHER = ("the", "film", "was", "quite", "and", "story", "of", "music", "a", "very")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ROWS = {"train": 160, "validation": 60, "test": 60}

RECIPE = """
seed: {seed}
task: {{data: {data}, text: [text], label: label, metrics: [accuracy]}}
model: {{name: {model}, precision: float32, device: cpu}}
search:
  trials: 3
  variant: {{freeze_layers: 1}}
  epochs: 1
  space:
    learning_rate: {{low: 1.0e-3, high: 1.0e-2, log: true}}
    per_device_train_batch_size: {{choices: [8, 16]}}
train: {{epochs: 3, members: 4, collect_from: 0.3}}
fuse: {{evaluations: 12, methods: [finetune, swa, greedy, mobo, random]}}
"""


def make_model(folder: Path) -> Path:
    """A BERT of two layers, drawn from a seed, with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", model_max_length=32, **names
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_data(folder: Path) -> Path:
    """Short texts whose label follows from most of their words, except for some noise."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for split, count in ROWS.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(count):
                marks = [draw.choice(GOOD + BAD) for _ in range(3)]
                good = (sum(mark in GOOD for mark in marks) >= 2) == (draw.random() > 0.1)
                words = [*marks, *draw.choices(OTHER, k=draw.randint(2, 6))]
                draw.shuffle(words)
                row = {"text": " ".join(words), "label": "good" if good else "bad"}
                file.write(json.dumps(row) + "\n")
    return folder


def make_recipe(folder: Path, seed: int = 41) -> str:
    """The recipe of a run with a model and data of its own, which are made in `folder`."""
    model, data = make_model(folder / "model"), make_data(folder / "data")
    return RECIPE.format(seed=seed, data=data, model=model)


def work(recipe: str, folder: str, overrides: tuple[str, ...] = ()) -> None:
    """One run on one core, in a process group of its own: to be called in a new process."""
    import os

    import torch

    from fusetune.pipeline import run
    from fusetune.recipe_file import parse

    os.setsid()
    torch.set_num_threads(1)
    run(parse(recipe, overrides), folder)
