"""The harness of the quality protocols: training, records, going on, freeing the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

from benchmarks import transfer
from benchmarks.protocols import dense, records, runs, settings
from benchmarks.protocols.job import Job
from fusetune.errors import RunError
from fusetune.optimization.storage import open_existing
from fusetune.pipeline.context import SEARCH
from fusetune.pipeline.display import Display
from fusetune.recipe_file import parse


def test_a_tiny_protocol_from_training_to_records(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["search.trials=0", "train.epochs=1", "train.members=3", "fuse.evaluations=9"]

    tries = {"members-5": ["train.members=2"], "evaluations-20": ["fuse.evaluations=7"]}
    tries["base-member"] = ["fuse.base_member=true"]
    tries["brier"] = ["task.metrics=[accuracy, brier]"]

    def tiny(*_: object, attempt: str = "", **__: object) -> Any:
        more = tries.get(attempt, [])
        return parse(tiny_recipe, [*short, *more]), [*short, *more]

    monkeypatch.setattr(settings, "recipe", tiny)

    def job(*methods: str, attempt: str = "") -> Job:
        return Job.of("b", "rte", 41, methods, tmp_path, "quick", attempt)

    def run(job: Job, *, delete: bool = False) -> list[str]:
        display = Display(quiet=True)
        files = runs.run(
            job, tmp_path / "runs", tmp_path / "results", delete_members=delete, display=display
        )
        return [file.stem for file in files]

    assert run(job("swa"))[:2] == ["rte-41-finetune", "rte-41-swa"]
    assert run(job("swa")) == []
    made = run(job("swa", "mobo", "oracle"))
    assert {"rte-41-mobo.consensus", "rte-41-mobo.default", "rte-41-oracle"} <= set(made)
    found = {r.method: r for r in records.read_all(tmp_path / "results")}
    results = tmp_path / "runs/b/rte/seed-41/fixed/results.json"
    entries = json.loads(results.read_text())["methods"]
    for name in ("finetune", "swa", "mobo", "oracle"):
        test = entries[name]["test"]["accuracy"]["value"]
        assert found[name].test["accuracy"]["value"] == test
        base = entries["finetune"]["test"]["accuracy"]["value"]
        assert found[name].gain["value"] == pytest.approx(test - base)
        samples = found[name].differences()
        assert samples.mean() == pytest.approx(test - base, abs=0.02)
    assert (found["finetune"].differences() == 0.0).all()
    with np.load(job().landscape(tmp_path / "results", "fixed")) as landscape:
        assert landscape["validation_logits"].shape == (3, 120, 2)
        assert landscape["test_logits"].shape[0] == 3
        assert landscape["weights"].shape == (9, 3)

    outcomes = tmp_path / "runs/b/rte/seed-41/outcomes.npz"
    with np.load(outcomes) as saved:  # as another run of that name would have left them
        stale = {name: np.roll(saved[name], 7, axis=0) for name in saved.files}
    np.savez(outcomes, **stale)
    run(job("swa", "mobo", "oracle", "greedy"))
    again = {r.method: r for r in records.read_all(tmp_path / "results")}
    assert (again["mobo"].differences() == found["mobo"].differences()).all()

    run(job("mobo", attempt="evaluations-20"))  # the members are those of the main run
    log = tmp_path / "runs/b/rte+evaluations-20/seed-41/fixed/run.log"
    assert "taken over from another run" in log.read_text()
    (fewer,) = [
        r for r in records.read_all(tmp_path / "results") if r.attempt and r.method == "mobo"
    ]
    assert fewer.evaluations == 7

    run(job("swa", attempt="brier"))  # of the same members, evaluated by one metric before
    scored = {r.method: r for r in records.read_all(tmp_path / "results") if "brier" in r.test}
    assert {r.attempt for r in scored.values()} == {"brier"}
    assert scored["swa"].test["accuracy"] == found["swa"].test["accuracy"]

    made = run(job("swa", attempt="base-member"))  # a member more than the training kept
    assert made[1] == "rte-41-swa"

    assert run(job("swa", "mobo", "oracle"), delete=True) == []
    assert not list((tmp_path / "runs/b/rte").rglob("members/*"))
    with pytest.raises(RunError, match="no members any more, and ema"):
        run(job("ema"))
    monkeypatch.setattr(dense, "MEMBERS", 10)
    monkeypatch.setattr(dense, "COLLECT_FROM", 0.0)
    shutil.rmtree(tmp_path / "runs/b/rte")
    made = run(job("swa", attempt="members-5"))  # against the finetune of the kept landscape
    assert made[1:2] == ["rte-41-swa"]
    (tried,) = [
        r
        for r in records.read_all(tmp_path / "results")
        if (r.attempt, r.method) == ("members-5", "swa")
    ]
    base = found["finetune"].test["accuracy"]["value"]
    assert tried.gain["value"] == pytest.approx(tried.test["accuracy"]["value"] - base)

    many = json.loads(
        (tmp_path / "runs/b/rte+dense/seed-41/dense/stages/train.json").read_text()
    )
    fixed = tmp_path / "runs/b/rte+members-5/seed-41/fixed"
    assert "taken over from another run" in (fixed / "run.log").read_text()
    kept = sorted(folder.name for folder in (fixed / "members").iterdir())
    assert many["members"] == [f"step-{step:06}" for step in range(4, 41, 4)]
    assert kept == ["step-000028", "step-000040"]  # for the steps 30 and 40

    # The same training again, for rows without a search over w: what is known of one stays.
    rates = ["compare.learning_rates=[1e-4, 3e-4]"]
    monkeypatch.setattr(
        settings, "recipe", lambda *_, **__: (parse(tiny_recipe, [*short, *rates]), short)
    )
    (tmp_path / "results/b/rte-41-finetune.json").unlink()
    assert "rte-41-grid" in run(job("grid"))
    with np.load(job().landscape(tmp_path / "results", "fixed")) as landscape:
        assert landscape["weights"].shape == (9, 3)
    grid = list((tmp_path / "results/landscapes").glob("b-rte-41-grid-*"))
    assert len(grid) == 1  # of the rate that validation chose, not of the other one


def test_a_try_of_the_search_takes_the_trials_that_are_there(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = "search.variant={freeze_layers: 1}"
    short = [light, "train.epochs=1", "search.epochs=1", "train.members=2"]
    short += ["search.trials=3", "fuse.evaluations=4"]

    def tiny(*_: object, attempt: str = "", **__: object) -> Any:
        more = {
            "trials-8": ["search.trials=4"],
            "best-trials": [*settings.TRIES["best-trials"], "train.members=4"],
        }
        return parse(tiny_recipe, [*short, *more.get(attempt, [])]), short

    monkeypatch.setattr(settings, "recipe", tiny)

    folders = tmp_path / "runs", tmp_path / "results"

    def run(*rows: str, attempt: str = "") -> Job:
        job = Job.of("b", "rte", 41, rows, tmp_path, "quick", attempt)
        assert runs.run(job, *folders, delete_members=False, display=Display(quiet=True))
        return job

    def trials(attempt: str) -> list[FrozenTrial]:
        """Of the search, after the run."""
        (row,) = settings.rows(attempt)
        job = run(row, attempt=attempt)
        return searched(job.seed_folder(folders[0]) / row)

    def searched(place: Path) -> list[FrozenTrial]:
        storage = open_existing(place / "trials.journal")
        return optuna.load_study(study_name=SEARCH, storage=storage).get_trials(deepcopy=False)

    with pytest.raises(RunError, match="has no outcomes of fixed/finetune"):
        trials("trials-8")  # nothing to compare with: said before anything is trained
    assert not folders[0].exists()
    run("finetune")
    more = trials("trials-8")  # makes the search of the own settings first
    own = tmp_path / "runs/b/rte/seed-41/bomf"
    assert (own / "stages/search.json").exists()
    assert not (own / "stages/train.json").exists()
    best = searched(own)
    assert [t.params for t in more[:3]] == [t.params for t in best]
    began = [t.datetime_start for t in best]
    assert [t.datetime_start for t in more[:3]] == began  # none was made again
    assert len(more) == 4
    assert more[3].datetime_start is not None
    assert more[3].datetime_start > max(start for start in began if start is not None)
    trained = trials("best-trials")  # full trainings, of which two give the members
    folder = tmp_path / "runs/b/rte+best-trials/seed-41/bilevel"
    kept = json.loads((folder / "stages/train.json").read_text())["trajectories"]
    assert [len(one["members"]) for one in kept] == [2, 2]
    assert {one["trial"] for one in kept} < {t.number for t in trained}
    tried = {(r.attempt, r.method) for r in records.read_all(tmp_path / "results")}
    assert ("best-trials", "bilevel.default") in tried
    rows = ("bomf.default", "bomf.finetune")  # the second without the fusion
    assert {("trials-8", row) for row in rows} <= tried
    assert ("trials-8", "finetune") not in tried  # that of the own settings


def test_the_kept_steps_nearest_to_the_wanted_ones() -> None:
    assert dense.nearest([10, 19, 30], [5, 11, 18, 24, 30]) == [1, 2, 4]


def test_a_tiny_transfer_is_stored(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["train.epochs=1", "search.epochs=1", "train.members=2", "fuse.evaluations=4"]
    monkeypatch.setattr(
        settings,
        "recipe",
        lambda *_, **__: (parse(tiny_recipe, short), [*short, "task.data=x"]),
    )
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    transfer.main(["--protocol", "b", "--tasks", "rte", "--trials", "2", "--quiet", *places])
    found = json.loads((tmp_path / "results/transfer/b-rte-41.json").read_text())
    assert found["settings"] == short
    assert "subject" not in found  # which names the folder of the data
    assert len(found["trials"]) == 2
    assert all(row["fused"] is not None for row in found["trials"])
