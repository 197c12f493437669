from __future__ import annotations

from pathlib import Path

import pytest

from fusetune.pipeline import run
from fusetune.recipe_file import parse
from fusetune.run import RunFolder
from tests import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of two layers with its tokenizer, built from a configuration."""
    return tiny.save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts whose label follows from three of their words, except for some noise."""
    folder = tmp_path_factory.mktemp("data") / "sentiment"
    return tiny.save_rows(folder, tiny.sentiment, train=320, validation=120, test=120)


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
