from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertModel, PreTrainedModel

from tests import tiny

Change = Callable[[int, str, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_bert(num_labels: int = 2, **changes: int) -> PreTrainedModel:
    settings = {
        "vocab_size": 31,
        "hidden_size": 8,
        "intermediate_size": 12,
        "max_position_embeddings": 10,
    }
    return tiny.bert(**(settings | changes), num_labels=num_labels)


@pytest.fixture
def save_members(tmp_path: Path) -> Callable[..., Path]:
    """Writes k members of one model class, `step-…`, and returns their parent folder."""

    def save(
        build: Callable[[], PreTrainedModel] = tiny_bert,
        k: int = 3,
        dtype: torch.dtype = torch.float32,
        name: str = "members",
        **options: object,
    ) -> Path:
        for i in range(k):
            model = tiny.randomise(build(), seed=i).to(dtype)
            model.save_pretrained(tmp_path / name / f"step-{10 * (i + 1)}", **options)
        return tmp_path / name

    return save


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Tensor]], None]], None]:
    """Changes the tensors of one saved member in place."""

    def change(folder: Path, how: Callable[[dict[str, Tensor]], None]) -> None:
        tensors = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
        how(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.fixture(scope="session")
def bert_members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny BERT members that no test may change."""
    folder = tmp_path_factory.mktemp("bert") / "members"
    for i in range(3):
        tiny.randomise(tiny_bert(), seed=i).save_pretrained(folder / f"step-{10 * (i + 1)}")
    return folder


@pytest.fixture
def copied_members(bert_members: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_members, tmp_path / "members"))


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Changes settings in config.json of a folder; None takes them out."""

    def change(folder: Path, **settings: object) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | settings
        left = {key: value for key, value in config.items() if value is not None}
        path.write_text(json.dumps(left))

    return change


@pytest.fixture
def bert() -> PreTrainedModel:
    return tiny_bert()


@pytest.fixture
def other_bert() -> Callable[..., PreTrainedModel]:
    return tiny_bert


@pytest.fixture
def bare_bert() -> PreTrainedModel:
    """The same network without a head."""
    return BertModel(tiny_bert().config)


@pytest.fixture
def raw_members(tmp_path: Path) -> Callable[[Sequence[dict[str, Tensor]]], Path]:
    """Writes plain state dicts as members."""

    def save(states: Sequence[dict[str, Tensor]]) -> Path:
        for i, state in enumerate(states):
            folder = tmp_path / "raw" / f"step-{i}"
            folder.mkdir(parents=True)
            save_file(
                {n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors"
            )
            (folder / "config.json").write_text(json.dumps({"model_type": "raw"}))
        return tmp_path / "raw"

    return save
