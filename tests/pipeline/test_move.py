"""`fusetune storage copy`, and passwords that are never written down."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import RunError
from fusetune.optimization.storage import open_storage, quiet, without_password
from fusetune.pipeline.move import copy_storage
from fusetune.recipe_file import ready
from fusetune.run import RunFolder

SECRET = "postgresql://me:pa55word@db.example.org/trials?sslmode=require&sslpassword=pa55word"
BARE = "postgresql://me@db.example.org/trials?sslmode=require"


def study(storage: optuna.storages.BaseStorage, name: str, values: list[float]) -> None:
    with quiet():
        made = optuna.create_study(study_name=name, storage=storage)
    for value in values:
        trial = made.ask()
        trial.suggest_float("x", 0, 1)
        made.tell(trial, value)


def names(place: str | Path) -> list[str]:
    return sorted(optuna.get_all_study_names(open_storage(place)))


def test_a_run_goes_to_a_database_and_back(tmp_path: Path) -> None:
    folder, url = tmp_path / "runs" / "rte", f"sqlite:///{tmp_path}/trials.db"
    folder.mkdir(parents=True)
    study(open_storage(folder / "trials.journal"), "search", [0.1, 0.2])
    study(open_storage(folder / "trials.journal"), "fuse", [0.3])
    result = CliRunner().invoke(app, ["storage", "copy", str(folder), url])
    assert result.exit_code == 0, result.output
    prefix = RunFolder(folder).study_prefix(())
    assert names(url) == [f"{prefix}fuse", f"{prefix}search"]
    assert f"{prefix}search, 2 trials" in result.output.replace("\n", "")
    study(open_storage(url), "of somebody else", [0.5])
    (folder / "trials.journal").unlink()
    copy_storage(url, str(folder))
    assert names(folder / "trials.journal") == ["fuse", "search"]
    back = optuna.load_study(
        study_name="search", storage=open_storage(folder / "trials.journal")
    )
    assert [t.value for t in back.trials] == [0.1, 0.2]


def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (("empty", "no journal of trials"), ("gone", "does not exist")):
        with pytest.raises(RunError, match=message):
            copy_storage(str(tmp_path / source), f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(RunError, match="is in use by process"):  # noqa: SIM117
        with RunFolder(tmp_path / "empty").claim():
            copy_storage(str(tmp_path / "empty"), f"sqlite:///{tmp_path}/x.db")


def test_a_password_is_never_shown() -> None:
    assert without_password(SECRET) == BARE
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    assert "pa55word" not in without_password("postgresql://me:pa55word@[broken/x")
    recipe = str(ready()["rte-minilm"])
    for command in (["recipe", "show", recipe], ["run", recipe, "--print-recipe"]):
        result = CliRunner().invoke(app, [*command, f"storage={SECRET}"])
        assert result.exit_code == 0, result.output
        assert BARE in result.output
        assert "pa55word" not in result.output


def test_options_of_machines_stand_for_keys_of_the_recipe() -> None:
    recipe = str(ready()["rte-minilm"])
    options = ["--executor", "ray", "--storage", "sqlite:///t.db", "--study", "team: 1"]
    result = CliRunner().invoke(app, ["search", recipe, "--print-recipe", *options])
    assert result.exit_code == 0, result.output
    for line in ("kind: ray", "storage: sqlite:///t.db", "study: 'team: 1'"):
        assert line in result.output
    alone = CliRunner().invoke(app, ["search", recipe, "--print-recipe", "--study", "x"])
    assert alone.exit_code == 2
    assert "a search is shared in a database" in alone.output
