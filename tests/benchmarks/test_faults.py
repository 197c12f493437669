"""The harness of the kill test: does it see what it is there to see?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from benchmarks import faults, soak
from fusetune.optimization.storage import open_storage

Trials = Sequence[tuple[int, float]]


def fake(folder: Path, trials: Trials = ((0, 0.5), (1, 0.25)), value: float = 0.9) -> Path:
    """A finished run as far as the harness looks at one."""
    study = optuna.create_study(study_name="search", storage=_storage(folder))
    for _, x in trials:
        trial = study.ask()
        trial.suggest_float("x", x, x)
        study.tell(trial, x)
    methods = {"mobo": {"value": value, "seconds": 1.0}}
    (folder / "results.json").write_text(json.dumps({"cost": folder.name, "methods": methods}))
    (folder / "fused").mkdir()
    for name in faults.SAME_BYTES:
        (folder / name).write_bytes(b"same")
    return folder


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    folder.mkdir(parents=True)
    return open_storage(folder / "trials.journal")


def tally(whole: Path, cut: Path) -> tuple[int, int, int]:
    found = faults.Tally()
    faults.compare(whole, cut, found)
    return found.lost, found.doubled, found.different


def test_equal_runs_but_for_times(tmp_path: Path) -> None:
    assert tally(fake(tmp_path / "whole"), fake(tmp_path / "cut")) == (0, 0, 0)


@pytest.mark.parametrize(
    ("trials", "value", "expected"),
    [
        (((0, 0.5),), 0.9, (1, 0, 0)),  # one missing
        (((0, 0.5), (1, 0.125)), 0.9, (1, 0, 0)),  # another value
        (((0, 0.5), (1, 0.25), (2, 0.25)), 0.9, (0, 1, 0)),  # one too many
        (((0, 0.5), (1, 0.25)), 0.8, (0, 0, 1)),  # another result
    ],
)
def test_what_differs_is_counted(
    trials: Trials, value: float, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    assert tally(fake(tmp_path / "whole"), fake(tmp_path / "cut", trials, value)) == expected


def test_other_weights_are_seen(tmp_path: Path) -> None:
    whole = fake(tmp_path / "whole")
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "fused/model.safetensors").write_bytes(b"sane")
    assert tally(whole, cut) == (0, 0, 1)


def test_the_stage_of_a_run(tmp_path: Path) -> None:
    assert faults.STAGES[faults.stage_of(tmp_path)] == "check"
    (tmp_path / "environment.json").touch()
    assert faults.STAGES[faults.stage_of(tmp_path)] == "search"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/search.json").touch()
    assert faults.STAGES[faults.stage_of(tmp_path)] == "train"
    (tmp_path / "stages/report.json").touch()
    assert faults.stage_of(tmp_path) == len(faults.STAGES)


@pytest.mark.slow
def test_a_few_kills(tmp_path: Path) -> None:
    found = faults.measure(3, 3, seed=1, place=tmp_path)
    assert (found["kills"], found["lost"], found["doubled"], found["different"]) == (3, 0, 0, 0)


def test_a_leak_shows_in_the_slope() -> None:
    readings = [
        soak.Reading(i / 60, 500.0 + 2.0 * i, 1000 + 5 * i, 3, 9 + i) for i in range(16)
    ]
    found = soak.summary(readings)
    assert found["slope_mb_per_hour"] == pytest.approx(120.0)
    assert found["slope_mb_per_run"] == pytest.approx(2.0)
    assert found["objects_per_run"] == pytest.approx(5.0)
    assert found["files"] == 15
