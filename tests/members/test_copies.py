"""One model at several places counts once, and that is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusetune.errors import MemberError
from fusetune.members.manifest import write_manifest
from fusetune.members.pool import inspect


def names_and_notes(paths: object) -> tuple[list[str], str]:
    found = inspect(paths, allow_pickle=True)  # type: ignore[arg-type]
    return [member.name for member in found.members], "\n".join(found.notes)


@pytest.fixture
def out(bert_members: Path, tmp_path: Path) -> Path:
    for folder in bert_members.iterdir():
        shutil.copytree(folder, tmp_path / "out" / folder.name)
    return tmp_path / "out"


WHOLE = ["step-10", "step-20", "step-30"]


def test_a_path_given_twice(out: Path) -> None:
    names, notes = names_and_notes([out / "step-10", out / "step-20", out / "step-10"])
    assert names == ["step-10", "step-20"]
    assert notes == f"{out / 'step-10'} is given twice and counts once."


@pytest.mark.parametrize("form", ["link", "copy", "other metadata", "shards", "pickle"])
def test_a_last_checkpoint_that_is_a_copy(form: str, out: Path) -> None:
    last, file = out / "a-last", out / "step-30/model.safetensors"
    if form == "link":
        last.symlink_to(out / "step-30", target_is_directory=True)
    else:
        shutil.copytree(out / "step-30", last)
        tensors = load_file(file)
        (last / file.name).unlink()
        if form == "copy":
            shutil.copyfile(file, last / file.name)
        elif form == "other metadata":
            save_file(tensors, last / file.name, metadata={"epoch": "3"})
        elif form == "shards":
            from transformers import AutoModelForSequenceClassification

            model = AutoModelForSequenceClassification.from_pretrained(out / "step-30")
            shutil.rmtree(last)
            model.save_pretrained(last, max_shard_size="2KB")
        else:
            torch.save({"model": tensors, "epoch": 3}, last / "model.pt")
    names, notes = names_and_notes(out)
    assert names == WHOLE
    assert f"{last} is the same model as {out / 'step-30'}: they count once." in notes


def test_files_of_one_state_with_other_counters(tmp_path: Path) -> None:
    states = [nn.Linear(2, 2).state_dict() for _ in range(2)]
    for name, state in (("step=1", 0), ("step=2", 1), ("last", 1)):
        torch.save({"state_dict": states[state], "saved_as": name}, tmp_path / f"{name}.ckpt")
    names, notes = names_and_notes(str(tmp_path / "*.ckpt"))
    assert names == ["step=1.ckpt", "step=2.ckpt"]
    assert "last.ckpt is the same model" in notes


def test_members_of_one_training_that_stood_still_are_several(out: Path) -> None:
    for step in (10, 20, 30):
        if step > 10:
            shutil.copyfile(
                out / "step-10/model.safetensors", out / f"step-{step}/model.safetensors"
            )
        write_manifest(out / f"step-{step}", step=step, epoch=None)
    assert names_and_notes(out)[0] == WHOLE


def test_one_model_alone_is_refused_with_the_reason(out: Path) -> None:
    shutil.copytree(out / "step-10", out / "best")
    found = inspect([out / "step-10", out / "best"])
    assert "found one" in found.problems[0]
    assert "all that the paths lead to" in found.problems[0]
    assert isinstance(found.errors[0], MemberError)
