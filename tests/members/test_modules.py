"""Members whose further modules have folders of their own, as sentence-transformers writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel, MixtralConfig, MixtralModel, PreTrainedModel

from fusetune.errors import MemberError
from fusetune.members.average import ResidentAverage, StreamingAverage, for_files
from fusetune.members.export import export
from fusetune.members.member import Member
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights

WEIGHTS = FusionWeights((0.5, 0.3, 0.2))
MODULES = [
    {"idx": 0, "path": ""},
    {"idx": 1, "path": "1_Pooling"},
    {"idx": 2, "path": "2_Dense"},
]


class Shell(nn.Module):
    """A module around a model of Transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model


def chain(body: PreTrainedModel, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(Shell(body), nn.Identity(), nn.Linear(8, 3))
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def save(model: nn.Sequential, folder: Path) -> None:
    body, dense = model[0].model, model[2]
    body.save_pretrained(folder)  # type: ignore[operator, union-attr]
    (folder / "modules.json").write_text(json.dumps(MODULES))
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    save_file(dense.state_dict(), folder / "2_Dense" / "model.safetensors")


def experts() -> PreTrainedModel:
    return MixtralModel(
        MixtralConfig(
            vocab_size=31,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=3,
        )
    )


@pytest.fixture(params=["bert", "mixtral"])
def body(request: pytest.FixtureRequest, bare_bert: BertModel) -> Callable[[], PreTrainedModel]:
    return experts if request.param == "mixtral" else lambda: BertModel(bare_bert.config)


@pytest.fixture
def wanted(body: Callable[[], PreTrainedModel], tmp_path: Path) -> dict[str, Tensor]:
    """Saves three members; gives their average as a state dict."""
    models = [chain(body(), seed) for seed in range(3)]
    for i, model in enumerate(models):
        save(model, tmp_path / "out" / f"checkpoint-{i}")
    states = [model.state_dict() for model in models]
    return {
        name: sum(
            (w * s[name] for w, s in zip(WEIGHTS.values, states, strict=True)), torch.zeros(())
        )
        for name in states[0]
        if states[0][name].is_floating_point()
    }


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
def test_all_modules_are_averaged_into_the_model(
    form: type[ResidentAverage | StreamingAverage],
    body: Callable[[], PreTrainedModel],
    wanted: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    model = chain(body(), seed=9)
    form(MemberPool.open(tmp_path / "out"), model).into_model(WEIGHTS)
    for name, value in wanted.items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("size", ["5GB", "1KB"])
def test_each_module_is_written_into_its_folder(
    wanted: dict[str, Tensor], tmp_path: Path, size: str
) -> None:
    pool = MemberPool.open(tmp_path / "out")
    fused = export(for_files(pool), WEIGHTS, pool, tmp_path / "fused", max_shard_size=size)
    assert (fused / "modules.json").is_file()
    assert (fused / "1_Pooling" / "config.json").is_file()
    dense = load_file(fused / "2_Dense" / "model.safetensors")
    torch.testing.assert_close(dense["weight"], wanted["2.weight"])
    assert not any(
        "/" in name for file in fused.glob("*.safetensors") for name in load_file(file)
    )
    again = Member.open(fused)
    assert again.tensors.keys() == pool.tensors.keys()


def test_the_digest_and_the_comparison_know_every_module(
    wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "checkpoint-1"
    before = Member.open(folder).sha256
    save_file({"weight": torch.zeros(4, 8)}, folder / "2_Dense" / "model.safetensors")
    assert Member.open(folder).sha256 != before
    assert (
        "2_Dense/weight: 4 x 8 float32 != 3 x 8 float32"
        in inspect(tmp_path / "out").problems[0]
    )


def test_a_module_in_another_format_is_no_silent_part(
    wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    for i in range(3):
        folder = tmp_path / "out" / f"checkpoint-{i}" / "2_Dense"
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(bytes([i]))
    with pytest.raises(MemberError, match=r"2_Dense/pytorch_model\.bin holds weights beside"):
        MemberPool.open(tmp_path / "out")


@pytest.mark.parametrize(
    "listed", ['[{"path": "../other"}]', '[{"path": ".."}]', "[1]", "{", '[{"idx": 0}]']
)
def test_a_damaged_list_of_modules(wanted: object, tmp_path: Path, listed: str) -> None:
    folder = tmp_path / "out" / "checkpoint-1"
    (folder / "modules.json").write_text(listed)
    with pytest.raises(MemberError, match=r"checkpoint-1/modules\.json"):
        Member.open(folder)
