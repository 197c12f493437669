"""A folder of a model may not name, or link to, a file of somebody else's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fusetune.errors import FusetuneError, ModelError
from fusetune.members.member import Member
from fusetune.models.load import resolve
from tests import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "hub/snapshots/abc"
    tiny.bert().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "vocab.txt", "config.json", "v_head.bin", "more/merges.txt"]
)
def test_a_link_to_a_text_elsewhere_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    for secret in (tmp_path / ".ssh/id_rsa", tmp_path / ".docker/config.json"):
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("PRIVATE")
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(secret)
        for opening in (lambda: resolve(str(model)), lambda: Member.open(model)):
            with pytest.raises(
                FusetuneError, match=f"{name} is a link to .*no file of a model"
            ):
                opening()


def test_a_link_to_a_folder_elsewhere_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (model / "processor").symlink_to(tmp_path / ".ssh")
    with pytest.raises(ModelError, match="processor is a link to"):
        Member.open(model)


def test_links_of_a_cache_of_other_models_and_of_weights_are_fine(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "hub/blobs").mkdir()
    shutil.move(model / "config.json", tmp_path / "hub/blobs/0a1b")
    (model / "config.json").symlink_to("../../blobs/0a1b")
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other/vocab.txt").write_text("a\nb\n")
    (model / "vocab.txt").symlink_to(tmp_path / "other/vocab.txt")
    shutil.move(model / "model.safetensors", tmp_path / "big")
    (model / "model.safetensors").symlink_to(tmp_path / "big")
    assert resolve(str(model)).path == str(model)
    assert Member.open(model).tensors


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors"])
def test_the_index_of_a_pretrained_model_names_files_of_its_folder(
    name: str, model: Path
) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="points outside of its folder"):
        resolve(str(model))


@pytest.mark.parametrize("name", ["../model.gguf", "/etc/model.gguf"])
def test_a_gguf_file_lies_in_the_models_folder(name: str, model: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    with pytest.raises(ModelError, match="a file in the model's folder"):
        resolve(str(model), gguf_file=name)
