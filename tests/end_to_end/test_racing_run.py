"""A run whose search over w races its candidates."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fusetune.optimization.study import open_storage
from fusetune.pipeline import run
from fusetune.recipe_file import parse
from fusetune.run import RunFolder


@pytest.fixture(scope="module")
def raced(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    overrides = ["fuse.racing=true", "fuse.evaluations=30", "fuse.sampler=random"]
    return run(parse(tiny_recipe, overrides), tmp_path_factory.mktemp("runs") / "raced")


def test_dropped_candidates_are_pruned_and_in_no_table(raced: RunFolder) -> None:
    study = optuna.load_study(study_name="fuse-random", storage=open_storage(raced.journal))
    dropped = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert len(study.trials) == 30
    assert dropped
    for trial in dropped:
        assert trial.number >= 10  # the first 2 k are never raced
        assert 0 < trial.user_attrs["examples"] < 120
        assert set(trial.user_attrs["part"]) == {"loss", "accuracy", "matthews_correlation"}
        assert trial.values is None
    method = json.loads((raced.path / "methods" / "random.json").read_text())
    assert method["evaluations"] == 30 - len(dropped)
    best = max(t.values[1] for t in study.trials if t.state == TrialState.COMPLETE)
    assert method["values"]["accuracy"] == best


def test_the_same_run_drops_the_same(
    raced: RunFolder, tiny_recipe: str, tmp_path: Path
) -> None:
    overrides = ["fuse.racing=true", "fuse.evaluations=30", "fuse.sampler=random"]
    again = run(parse(tiny_recipe, overrides), tmp_path / "again")
    states = []
    for folder in (raced, again):
        study = optuna.load_study(
            study_name="fuse-random", storage=open_storage(folder.journal)
        )
        states.append([(t.state, t.values, t.user_attrs.get("part")) for t in study.trials])
    assert states[0] == states[1]
