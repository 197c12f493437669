"""A whole run with one w per group of layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.members.mergekit import LinearMerge
from fusetune.members.pool import MemberPool
from fusetune.pipeline import run, tracking
from fusetune.pipeline.context import Context
from fusetune.pipeline.dashboard import note
from fusetune.pipeline.display import Display
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

FEW = [
    "search.trials=0",
    "train.epochs=2",
    "train.members=4",
    "fuse.evaluations=45",
    "fuse.methods=[finetune, mobo, layers]",
    "fuse.prior=false",
    "train.arguments={learning_rate: 1.0e-2}",
]


@pytest.fixture(scope="module")
def made(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(parse(tiny_recipe, FEW), tmp_path_factory.mktemp("layers") / "run")


def test_finer_weights_are_searched_reported_and_exported(
    made: RunFolder, tmp_path: Path
) -> None:
    record = json.loads((made.path / "stages/fuse.json").read_text())["methods"]
    assert record["layers"]["details"]["groups"] == [
        "embeddings", "layers 1/3", "layers 2/3", "head",
    ]  # fmt: skip
    finer = record["layers.finer"]["point"]
    assert len({tuple(group["weights"]) for group in finer["layers"]}) > 1
    assert "layers.finer" in json.loads(made.results.read_text())["methods"]
    front = [LinearMerge.read(file) for file in made.front.glob("point-*.yaml")]
    assert front  # recipes with one w each; finer points are none
    pool = MemberPool.open(made.members)
    for point in front:
        assert sum(point.weights_of(pool.members).values) == pytest.approx(1.0)
    command = ["export", made.path, "--method", "layers.finer", "--out", tmp_path / "finer"]
    result = CliRunner().invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output

    model = load_file(tmp_path / "finer/model.safetensors")
    members = sorted(made.members.iterdir())
    states = [load_file(member / "model.safetensors") for member in members]
    weights = {group["group"]: group["weights"] for group in finer["layers"]}
    for group, name in {
        "embeddings": "bert.embeddings.word_embeddings.weight",
        "head": "classifier.weight",
    }.items():
        wanted = sum(w * s[name] for w, s in zip(weights[group], states, strict=True))
        assert (model[name] - wanted).abs().max() < 1e-6
    assert "| `t0` | embeddings, towards " in note(made, "fuse-layers")
    assert f"| `w0` | {members[0].name} |" in note(made, "fuse")


def test_finer_weights_are_reported_to_trackers(
    made: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[int, dict[str, float]] = {}

    class Recorder:
        def __init__(self, *_: object) -> None: ...

        def log(self, step: int, values: dict[str, float]) -> None:
            logged[step] = values

        def close(self) -> None: ...

    monkeypatch.setattr(tracking, "Tracker", Recorder)
    monkeypatch.setattr(
        tracking, "settings_of", lambda *_: SimpleNamespace(report_to=["somewhere"])
    )
    context = Context(parse(made.recipe_file.read_text()), made, Display(quiet=True))
    study = context.loop().find("fuse-layers")
    assert study is not None
    names = tuple(sorted(folder.name for folder in made.members.iterdir()))
    bench: Any = SimpleNamespace(
        pool=SimpleNamespace(names=names), average=SimpleNamespace(model=None)
    )
    with tracking.following(context, bench, "layers") as log:
        for trial in study.get_trials(deepcopy=False):
            log(study, trial)
    context.close()
    assert len(logged) == len(study.trials) > 0
    first = logged[0]
    assert first["fuse/layers/loss"] > 0.0
    assert sum(first[f"weight/layers/head/{name}"] for name in names) == pytest.approx(1.0)
