"""Averages into models that accelerate has laid out: the same bits as into a plain one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel

from benchmarks import tiny
from fusetune.errors import MemberError, RecipeError
from fusetune.members.average import ResidentAverage, build
from fusetune.members.averaging_plan import choose
from fusetune.members.dispatched import is_dispatched, offloaded
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.models.device import require_trainable
from fusetune.models.load import resolve

W = FusionWeights((0.2, 0.8))
IDS = torch.arange(4, 16).view(2, 6)
PARTS = ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tiny.make_model(tmp_path_factory.mktemp("model"))
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        paths.append(tmp_path_factory.mktemp("members") / f"step-{seed}")
        model.save_pretrained(paths[-1])
    return paths


def load(path: Path, **options: object) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(path, **options).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.fixture(scope="module")
def expected(members: list[Path]) -> Mapping[str, torch.Tensor]:
    """Logits of the first member, and of the average in a model on one device."""
    model = load(members[0])
    found = {"member": logits(model)}
    ResidentAverage(MemberPool.open(members), model).into_model(W)
    return {**found, "average": logits(model)}


def test_an_average_goes_into_layers_that_are_kept_in_memory(
    members: list[Path], expected: Mapping[str, torch.Tensor]
) -> None:
    """As on a GPU that has no room for them: copied there each time they compute."""
    pool = MemberPool.open(members)
    model = cpu_offload(load(members[0]), torch.device("cpu"))
    assert is_dispatched(model)
    assert all(p.is_meta for p in model.parameters())
    held = {name: tensor.data_ptr() for name, tensor in offloaded(model).items()}
    average = build(choose(pool), pool, model)
    for point, name in ((FusionWeights((1.0, 0.0)), "member"), (W, "average")):
        average.into_model(point)
        assert torch.equal(logits(model), expected[name])
    assert all(p.is_meta for p in model.parameters())  # no second model was made
    assert {name: t.data_ptr() for name, t in offloaded(model).items()} == held
    with pytest.raises(MemberError, match="no gradients"):
        average.gradient_products()


def test_an_average_goes_into_layers_on_devices(
    members: list[Path], expected: Mapping[str, torch.Tensor]
) -> None:
    pool = MemberPool.open(members)
    places = {f"bert.{part}": "cpu" for part in PARTS} | {"dropout": "cpu", "classifier": "cpu"}
    model = dispatch_model(load(members[0]), places, main_device="cpu", force_hooks=True)
    assert is_dispatched(model)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    average = build(choose(pool), pool, model)
    average.into_model(W)
    assert torch.equal(logits(model), expected["average"])
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


def test_layers_on_the_disk_are_refused(members: list[Path], tmp_path: Path) -> None:
    places = {f"bert.{part}": "cpu" for part in PARTS} | {"dropout": "cpu", "classifier": "cpu"}
    places["bert.encoder.layer.1"] = "disk"
    model = load(members[0], device_map=places, offload_folder=tmp_path)
    pool = MemberPool.open(members)
    with pytest.raises(MemberError, match=r"bert\.encoder\.layer\.1\..* lies on the disk"):
        build(choose(pool), pool, model)
    with pytest.raises(RecipeError, match=r"among them, have no room.*cannot be trained"):
        require_trainable(model)


def test_a_source_lays_out_what_is_to_be_evaluated(members: list[Path]) -> None:
    seen = []

    def make(path: str, **options: object) -> tuple[nn.Module, dict[str, object]]:
        seen.append(options.get("device_map"))
        kind = AutoModelForSequenceClassification
        model, info = kind.from_pretrained(path, **options)
        return model.eval(), info

    source = resolve(str(members[0]), device_map={"": "cpu"})
    source.build(make)
    model = source.build(make, spread=True)
    assert seen == [None, {"": "cpu"}]
    assert not is_dispatched(model)  # one device is no spread
    require_trainable(model)


def test_a_plain_model_is_not_dispatched() -> None:
    from transformers import BertConfig

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    model = BertModel(config)
    assert not is_dispatched(model)
    assert offloaded(model) == {}
