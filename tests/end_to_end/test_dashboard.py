from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from typer.testing import CliRunner

from fusetune.cli import app as cli
from fusetune.errors import RunError
from fusetune.optimization.storage import open_existing
from fusetune.pipeline import run
from fusetune.pipeline.dashboard import app, serve
from fusetune.recipe_file import parse
from fusetune.run import RunFolder


@pytest.fixture
def finished(quick_run: RunFolder) -> RunFolder:
    return quick_run


def get(application: Any, path: str) -> tuple[str, bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    found = []
    body = application(environ, lambda status, headers, *rest: found.append(status))
    return found[0], b"".join(body)


def test_the_page_shows_trials_names_and_notes(finished: RunFolder) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
    before = finished.journal.read_bytes()
    application = app(finished.path)
    assert get(application, "/dashboard")[0].startswith("200")
    (study,) = json.loads(get(application, "/api/studies")[1])["study_summaries"]
    assert study["study_name"] == "fuse"
    content = json.loads(get(application, f"/api/studies/{study['study_id']}")[1])
    assert len(content["trials"]) == 10
    assert content["objective_names"] == ["loss", "accuracy", "matthews_correlation"]
    assert {p["name"] for p in content["trials"][0]["params"]} == {"w0", "w1", "w2", "w3"}
    attributes = {a["key"] for a in content["trials"][0]["user_attrs"]}
    assert {"weights", "origin", "seconds"} <= attributes
    members = json.loads((finished.path / "stages/train.json").read_text())["members"]
    assert f"| `w1` | {members[1]} |" in content["note"]["body"]
    assert "Chosen: **mobo" in content["note"]["body"]
    assert finished.journal.read_bytes() == before  # the note stays in memory


def test_what_is_followed_cannot_be_changed_and_grows(finished: RunFolder) -> None:
    watched = open_existing(finished.journal)
    with pytest.raises(RunError, match="only shown here"):
        optuna.delete_study(study_name="fuse", storage=watched)
    study = optuna.load_study(study_name="fuse", storage=watched)
    study.set_user_attr("mine", 1)
    content = finished.journal.read_bytes()
    try:
        writer = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(finished.journal))
        )
        optuna.load_study(study_name="fuse", storage=writer).ask()
        assert len(study.get_trials()) == 11
        assert study.user_attrs["mine"] == 1
    finally:
        finished.journal.write_bytes(content)


def test_it_is_served(finished: RunFolder) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
    said: list[str] = []
    listening = threading.Event()

    def announce(text: str) -> None:
        said.append(text)
        listening.set()

    settings = {"host": "127.0.0.1", "port": 0, "announce": announce}
    threading.Thread(target=serve, args=(finished.path,), kwargs=settings, daemon=True).start()
    assert listening.wait(60)
    address = said[0].partition(" at ")[2].partition(" ")[0]
    with urllib.request.urlopen(f"{address}api/studies", timeout=60) as answer:
        assert b'"fuse"' in answer.read()


def test_trainings_and_trials_are_in_tensorboard(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = [
        "search.trials=1",
        "train.epochs=1",
        "train.members=3",
        "train.arguments={learning_rate: 1.0e-3, report_to: tensorboard}",
        "fuse.evaluations=5",
    ]
    folder = run(parse(tiny_recipe, settings), tmp_path / "run")
    assert sorted(f.name for f in folder.logs.iterdir()) == ["fuse-mobo", "train", "trial-0000"]
    trained = EventAccumulator(str(folder.logs / "train")).Reload()
    assert trained.Scalars("train/loss")
    fused = EventAccumulator(str(folder.logs / "fuse-mobo")).Reload()
    study = optuna.load_study(study_name="fuse", storage=open_existing(folder.journal))
    found = [event.value for event in fused.Scalars("eval/fuse/mobo/accuracy")]
    assert found == pytest.approx([trial.values[1] for trial in study.trials])
    # Where it is reported to changes nothing of the run.
    settings[3] = "train.arguments={learning_rate: 1.0e-3}"
    assert folder.changes(parse(tiny_recipe, settings)) == {}


def test_trainings_and_trials_are_in_mlflow(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    mlflow.set_tracking_uri(address)
    settings = [
        "search.trials=2",
        "train.epochs=1",
        "train.members=3",
        "train.arguments={learning_rate: 1.0e-3, report_to: mlflow}",
        "fuse.evaluations=5",
    ]
    folder = run(parse(tiny_recipe, settings), tmp_path / "run")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    runs = {
        found.info.run_name: found for found in client.search_runs([experiment.experiment_id])
    }
    assert sorted(runs) == ["run/fuse-mobo", "run/train", "run/trial-0000", "run/trial-0001"]
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    assert "loss" in runs["run/train"].data.metrics
    study = optuna.load_study(study_name="fuse", storage=open_existing(folder.journal))
    fused = runs["run/fuse-mobo"].info.run_id
    found = client.get_metric_history(fused, "eval_fuse/mobo/accuracy")
    assert [m.value for m in found] == pytest.approx(
        [trial.values[1] for trial in study.trials]
    )
    member = json.loads((folder.path / "stages/train.json").read_text())["members"][0]
    assert len(client.get_metric_history(fused, f"eval_weight/mobo/{member}")) == 5


def test_without_the_extra(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    result = CliRunner().invoke(cli, ["dashboard", str(finished.path)])
    assert result.exit_code == 2
    assert "pip install 'fusetune[dashboard]'" in result.output


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["studies", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no run" in result.output
