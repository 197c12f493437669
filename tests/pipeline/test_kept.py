from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from fusetune.members.manifest import read_manifest, write_manifest
from fusetune.objective import Objective
from fusetune.pipeline.kept import KeptTrial, KeptTrials, best_trials

ACCURACY = Objective("accuracy", "maximize")
STEPS = (2, 4)


def trial(
    number: int, value: float | None, rate: float, state: str = "COMPLETE"
) -> FrozenTrial:
    made = optuna.trial.create_trial(
        state=TrialState[state],
        value=value,
        params={"learning_rate": rate},
        distributions={"learning_rate": optuna.distributions.FloatDistribution(0.0, 1.0)},
    )
    made.number = number
    return made


def trained(work: Path, number: int) -> Path:
    folder = work / f"trial-{number:04d}"
    for step in STEPS:
        member = folder / "members" / f"step-{step:06d}"
        member.mkdir(parents=True)
        (member / "model.safetensors").write_bytes(bytes([number, step]))
        write_manifest(member, step=step, epoch=1.0)
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> KeptTrials:
    found = KeptTrials(tmp_path / "work/kept")
    for number in range(3):
        record = KeptTrial({"learning_rate": number / 10}, STEPS, 4)
        found.keep(number, trained(tmp_path / "work", number), record)
    return found


def test_the_best_are_those_of_different_parameters() -> None:
    trials = [
        trial(0, 0.7, 0.1),
        trial(1, 0.9, 0.2),
        trial(2, 0.9, 0.2),
        trial(3, None, 0.3, "PRUNED"),
        trial(4, 0.8, 0.4),
    ]
    assert [t.number for t in best_trials(trials, ACCURACY, 3)] == [1, 4, 0]
    assert [t.number for t in best_trials(trials, ACCURACY, 1)] == [1]


def test_only_the_best_stay(kept: KeptTrials) -> None:
    trials = [trial(0, 0.7, 0.0), trial(1, 0.9, 0.1), trial(2, None, 0.2, "RUNNING")]
    kept.prune(trials, ACCURACY, 1)
    assert kept.find(0) is None
    assert kept.find(1) == KeptTrial({"learning_rate": 0.1}, STEPS, 4)
    assert kept.find(2) is not None  # it ended, and was not told yet


def test_taking_over_moves_the_members(kept: KeptTrials, tmp_path: Path) -> None:
    members = tmp_path / "members"
    assert kept.take(1, members, None)
    assert sorted(p.name for p in members.iterdir()) == ["step-000002", "step-000004"]
    assert (members / "step-000004/model.safetensors").read_bytes() == bytes([1, 4])
    assert not kept.take(7, members, None)


def test_a_trajectory_has_its_number_in_names_and_manifests(
    kept: KeptTrials, tmp_path: Path
) -> None:
    assert kept.take(2, tmp_path / "members", 3)
    manifest = read_manifest(tmp_path / "members/trajectory-3-step-000004")
    assert manifest is not None
    assert (manifest.trajectory, manifest.step) == (3, 4)


def test_taking_over_goes_on_where_it_was_cut_off(kept: KeptTrials, tmp_path: Path) -> None:
    members = tmp_path / "members"
    members.mkdir()
    source = kept.folder / "trial-0001/members"
    os.replace(source / "step-000002", members / "step-000002")
    assert kept.take(1, members, None)
    assert len(list(members.iterdir())) == 2


def test_a_trial_that_lacks_a_member_is_not_taken_over(
    kept: KeptTrials, tmp_path: Path
) -> None:
    (kept.folder / "trial-0001/members/step-000004/member.json").unlink()
    assert not kept.take(1, tmp_path / "members", None)
