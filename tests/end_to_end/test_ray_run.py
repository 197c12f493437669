"""A whole run whose trainings and evaluations happen in Ray's workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from fusetune.optimization.study import open_storage
from fusetune.pipeline import run
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow  # processes that import PyTorch, in every stage

SMALL = (
    "search.trials=2",
    "train.epochs=2",
    "train.members=3",
    "fuse.evaluations=9",
)
ONE = "executor={kind: ray, workers: 1, cpus_per_worker: 0.5, gpus_per_worker: 0}"


def history(folder: RunFolder) -> dict[str, list[Any]]:
    found = {}
    for name in ("search", "fuse"):
        study = optuna.load_study(study_name=name, storage=open_storage(folder.journal))
        found[name] = [
            (t.number, t.state.name, t.params, t.values, t.intermediate_values)
            for t in study.trials
        ]
    return found


@pytest.fixture(scope="module")
def serial(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(parse(tiny_recipe, SMALL), tmp_path_factory.mktemp("serial") / "run")


def test_one_worker_gives_what_no_worker_gives(
    serial: RunFolder, tiny_recipe: str, tmp_path: Path
) -> None:
    remote = run(parse(tiny_recipe, [*SMALL, ONE]), tmp_path / "run")
    assert not ray.is_initialized()
    assert history(remote) == history(serial)
    tables = [json.loads(folder.results.read_text())["methods"] for folder in (remote, serial)]
    for mine, other in zip(*(table.values() for table in tables), strict=True):
        assert mine["weights"] == other["weights"]
        assert mine["test"] == other["test"]
    assert not list(remote.path.glob("work/*"))


def test_several_workers_lose_nothing(tiny_recipe: str, tmp_path: Path) -> None:
    several = "executor={kind: ray, workers: 3, cpus_per_worker: 0.25, gpus_per_worker: 0}"
    folder = run(parse(tiny_recipe, [*SMALL, "search.pruner=none", several]), tmp_path / "run")
    found = history(folder)
    assert [t[0] for t in found["search"]] == [0, 1]
    assert [t[0] for t in found["fuse"]] == list(range(9))
    assert {t[1] for t in found["search"]} == {"COMPLETE"}
    assert len({tuple(t[2].values()) for t in found["fuse"]}) == 9
    assert (folder.fused / "model.safetensors").is_file()
