"""A run that trains, and takes the model that it began with as one more member."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusetune.pipeline import run
from fusetune.recipe_file import parse

CHANGES = [
    "search.trials=0",
    "search.variant=full",
    "train.epochs=2",
    "train.members=3",
    "train.arguments.learning_rate=5.0e-3",
    "fuse.evaluations=8",
    "fuse.methods=[finetune,swa,model_stock,mobo]",
    "fuse.base_member=true",
]


def test_the_pretrained_model_is_a_member(
    tiny_recipe: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = run(parse(tiny_recipe, CHANGES), tmp_path / "run")
    record = json.loads((folder.path / "stages/fuse.json").read_text())["methods"]
    third = 1 / 3
    assert record["swa"]["point"]["weights"] == [third, third, third, 0.0]
    assert record["mobo"]["evaluations"] == 8
    base = load_file(folder.base_member / "model.safetensors")
    first = load_file(min(folder.members.iterdir()) / "model.safetensors")
    pretrained = load_file(tiny_model / "model.safetensors")
    for name, tensor in base.items():
        own = pretrained.get(name.removeprefix("bert."))
        assert torch.equal(tensor, first[name] if own is None else own), name
    results = json.loads(folder.results.read_text())
    assert results["members"] == 4
    # The members of the training are those on record; started again, nothing is left to do.
    before = (folder.base_member / "model.safetensors").stat().st_mtime_ns
    folder = run(parse(tiny_recipe, CHANGES), tmp_path / "run", stage="report", force=True)
    assert (folder.base_member / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads(folder.results.read_text())["members"] == 4
