"""Links are not followed where a folder of fusetune's is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusetune.demo import demo_recipe
from fusetune.errors import RunError
from fusetune.members.claim import LOCK, claimed
from fusetune.members.disk import locked, replaced_file, replaced_folder, write_text

MINE = "my precious key"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "id_rsa"
    file.write_text(MINE)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "stranger"
    path.mkdir()
    return path


def hold(folder: Path) -> None:
    with claimed(folder, "The folder"):
        pass


@pytest.mark.parametrize("name", [LOCK, "run.log", "trials.journal", "trials.journal.lock"])
def test_a_file_that_is_appended_to_may_be_no_link(name: str, folder: Path, mine: Path) -> None:
    (folder / name).symlink_to(mine)
    with pytest.raises(RunError, match=f"{name} is a link"):
        hold(folder)
    assert mine.read_text() == MINE
    (folder / name).unlink()
    (folder / "results.json").write_text(MINE)  # nor to another file of the folder
    (folder / name).symlink_to("results.json")
    with pytest.raises(RunError, match=f"{name} is a link"):
        hold(folder)
    assert (folder / "results.json").read_text() == MINE


def test_a_lock_that_holds_something_else_is_not_overwritten(folder: Path, mine: Path) -> None:
    os.link(mine, folder / LOCK)
    with pytest.raises(RunError, match="another name of a file"):
        hold(folder)
    assert mine.read_text() == MINE
    (folder / LOCK).unlink()
    hold(folder)
    os.link(folder / LOCK, folder / "copy")
    hold(folder)  # one of its own may have two names


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / LOCK)
    with pytest.raises(RunError, match="not an ordinary file"):
        hold(folder)


def test_a_temporary_file_may_be_no_link(folder: Path, mine: Path) -> None:
    (folder / f".recipe.yaml.{os.getpid()}").symlink_to(mine)
    write_text(folder / "recipe.yaml", "new")
    assert (mine.read_text(), (folder / "recipe.yaml").read_text()) == (MINE, "new")
    (folder / "card").symlink_to(mine)
    write_text(folder / "card", "new")
    assert (mine.read_text(), (folder / "card").read_text()) == (MINE, "new")
    with replaced_file(folder / "card") as temporary:
        temporary.write_text("newer")
    assert mine.read_text() == MINE


@pytest.mark.parametrize("name", [".fused.new", ".fused.old", "fused"])
def test_a_folder_is_replaced_and_not_what_a_link_leads_to(
    name: str, folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text(MINE)
    (folder / name).symlink_to(elsewhere)
    with replaced_folder(folder / "fused") as new:
        (new / "file").write_text("new")
    assert (elsewhere / "file").read_text() == MINE
    assert (folder / "fused/file").read_text() == "new"
    assert [path.name for path in folder.iterdir()] == ["fused"]


def test_a_lock_on_shared_work_follows_no_link(folder: Path, mine: Path) -> None:
    (folder / ".parts").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"), locked(folder / ".parts"):
        pass


def test_the_demo_writes_no_data_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leaves the run folder"):
        demo_recipe(folder, ())
    assert not any((tmp_path / "elsewhere").iterdir())
