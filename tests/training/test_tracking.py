from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fusetune.errors import RecipeError
from fusetune.training.tracking import Tracker, own_runs, reporting_callbacks
from fusetune.training.watch import DivergedError


def settings(folder: Path, *report_to: str) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), report_to=list(report_to), use_cpu=True)


def test_numbers_are_found_in_tensorboard(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tracker = Tracker(
        settings(tmp_path / "work", "tensorboard"), tmp_path / "logs", nn.Linear(1, 1)
    )
    for step, value in enumerate([0.5, 0.25]):
        tracker.log(step, {"fuse/mobo/loss": value, "weight/mobo/step-1": 1.0 - value})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/fuse/mobo/loss")] == [
        (0, 0.5),
        (1, 0.25),
    ]
    assert "eval/weight/mobo/step-1" in events.Tags()["scalars"]
    assert not (tmp_path / "work").exists()


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    module.set_tracking_uri(address)
    yield module
    while module.active_run():
        module.end_run()
    module.set_tracking_uri(None)


def test_numbers_are_found_in_mlflow(tmp_path: Path, mlflow: Any) -> None:
    client = mlflow.MlflowClient()
    for name in ("first", "second"):
        given = settings(tmp_path, "mlflow")
        given.run_name = name
        tracker = Tracker(given, tmp_path, nn.Linear(1, 1))
        for step, value in enumerate([0.5, 0.25]):
            tracker.log(step, {"fuse/mobo/loss": value})
        tracker.close()
    runs = {run.info.run_name: run for run in client.search_runs(["0"])}
    assert set(runs) == {"first", "second"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        found = client.get_metric_history(run.info.run_id, "eval_fuse/mobo/loss")
        assert [(m.step, m.value) for m in found] == [(0, 0.5), (1, 0.25)]


def test_a_training_that_fails_leaves_no_run_open(tmp_path: Path, mlflow: Any) -> None:
    given = settings(tmp_path, "mlflow")
    given.run_name = "failing"
    callbacks = reporting_callbacks(given)

    def train(watching: list[TrainerCallback]) -> None:
        with own_runs(given, watching):
            watching[0].on_train_begin(given, TrainerState(), TrainerControl())
            raise DivergedError("the loss is no longer finite")

    with pytest.raises(DivergedError):
        train(callbacks)
    (failed,) = mlflow.MlflowClient().search_runs(["0"])
    assert (failed.info.run_name, failed.info.status) == ("failing", "FAILED")
    # A run of the program around stays what it is, whatever becomes of old callbacks.
    with mlflow.start_run() as outer:
        with own_runs(given, reporting_callbacks(given)):
            pass
        del callbacks
        gc.collect()
        assert mlflow.active_run().info.run_id == outer.info.run_id


def test_an_integration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="report_to: nothing_such is not supported"):
        Tracker(settings(tmp_path, "nothing_such"), tmp_path, nn.Linear(1, 1))
    with pytest.raises(RecipeError, match=r"report_to: .*clearml.* installed"):
        Tracker(settings(tmp_path, "clearml"), tmp_path, nn.Linear(1, 1))
