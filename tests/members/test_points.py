"""Points outside the simplex: averaged, kept, exported like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from fusetune.errors import MemberError
from fusetune.members.average import Average, ResidentAverage, StreamingAverage
from fusetune.members.export import FUSION, export
from fusetune.members.points import (
    Combination,
    OwnModel,
    Point,
    from_json,
    key,
    model_file,
    to_json,
)
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

FORMS = (ResidentAverage, StreamingAverage)


@pytest.fixture
def pool(bert_members: Path) -> MemberPool:
    return MemberPool.open(bert_members)


def own_model(pool: MemberPool, value: float = 0.5) -> OwnModel:
    return OwnModel.of(
        {name: torch.full(info.shape, value) for name, info in pool.members[0].tensors.items()}
    )


@pytest.mark.parametrize("form", FORMS)
def test_coefficients_may_be_negative(
    form: Callable[..., Average], pool: MemberPool, bert: PreTrainedModel
) -> None:
    average = form(pool, bert)
    average.into_model(Combination((1.5, -0.75, 0.0)))
    files = [load_file(m.path / "model.safetensors") for m in pool.members]
    for name, tensor in bert.state_dict().items():
        expected = 1.5 * files[0][name] - 0.75 * files[1][name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_its_own_is_taken_over_and_left_again(
    form: Callable[..., Average], pool: MemberPool, bert: PreTrainedModel
) -> None:
    average = form(pool, bert)
    own = own_model(pool)
    average.into_model(own)
    assert all(bool((t == 0.5).all()) for t in bert.state_dict().values())
    assert all(bool((t == 0.5).all()) for t in average.tensors(own).values())
    average.into_model(FusionWeights.one_hot(1, 3))
    member = load_file(pool.members[1].path / "model.safetensors")
    assert all(torch.equal(t, member[n]) for n, t in bert.state_dict().items())


def test_other_tensors_than_the_members_are_refused(
    pool: MemberPool, bert: PreTrainedModel
) -> None:
    average = ResidentAverage(pool, bert)
    tensors = dict(own_model(pool).tensors)
    tensors["classifier.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"classifier\.bias differs"):
        average.into_model(OwnModel.of(tensors))
    del tensors["classifier.bias"]
    with pytest.raises(ValueError, match=r"classifier\.bias differs"):
        average.tensors(OwnModel.of(tensors))


def test_equal_means_equal_bits() -> None:
    def one(value: float, name: str = "a") -> OwnModel:
        return OwnModel.of({name: torch.tensor([value, 1.0])})

    assert one(0.5) == one(0.5)
    assert hash(one(0.5)) == hash(one(0.5))
    others = [one(0.25), one(0.5, "b"), OwnModel.of({"a": torch.tensor([[0.5, 1.0]])})]
    assert all(one(0.5) != other for other in others)
    assert key(one(0.5)) != key(one(0.25))
    assert key(FusionWeights((0.5, 0.5))) == key(Combination((0.5, 0.5)))


@pytest.mark.parametrize("values", [(), (math.nan, 1.0), (math.inf,)])
def test_coefficients_are_finite(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Combination(values)


def test_points_come_back_from_json(tmp_path: Path) -> None:
    own = OwnModel.of({"a": torch.randn(3), "b": torch.randn(2, 2).bfloat16()})
    own.save(model_file(tmp_path, own.digest))
    points: list[Point] = [FusionWeights((0.25, 0.75)), Combination((2.0, -1.0)), own]
    for point in points:
        back = from_json(json.loads(json.dumps(to_json(point))), tmp_path)
        assert back == point
        assert type(back) is type(point)
    back = from_json(to_json(own), tmp_path)
    assert isinstance(back, OwnModel)
    assert all(torch.equal(back.tensors[n], t) for n, t in own.tensors.items())
    assert [f.name for f in tmp_path.iterdir()] == [f"{own.digest[:32]}.safetensors"]


def test_a_lost_or_strange_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="fuse --force"):
        OwnModel.open(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(MemberError, match="cannot be read"):
        OwnModel.open(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(MemberError, match="cannot be read"):
        OwnModel.open(tmp_path / "broken.safetensors")


def test_the_export_loads_as_any_other(
    pool: MemberPool, bert: PreTrainedModel, tmp_path: Path
) -> None:
    average = ResidentAverage(pool, bert)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        name: torch.randn(info.shape, generator=generator)
        for name, info in pool.members[0].tensors.items()
    }
    folder = export(average, OwnModel.of(tensors), pool, tmp_path / "fused")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert all(torch.equal(t, tensors[n]) for n, t in loaded.state_dict().items())
    record = json.loads((folder / FUSION).read_text())
    assert [m["weight"] for m in record["members"]] == [None] * 3
    assert record["model"] == OwnModel.of(tensors).digest
    card = (folder / "README.md").read_text()
    assert "| member | step |\n|---|---:|\n| step-10 | 10 |\n| step-20 | 20 |\n" in card
    assert "weight" not in card.split("## Members")[1]

    export(average, Combination((2.0, -1.0, 0.0)), pool, folder)
    card = (folder / "README.md").read_text()
    assert "| step-20 | 20 | -1.0000 |" in card
