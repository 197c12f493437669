"""Tensors that are equal in all members: kept once, and the same values as without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from fusetune.errors import MemberError
from fusetune.members.average import Average, ResidentAverage, StreamingAverage, build, plan
from fusetune.members.averaging_plan import choose
from fusetune.members.gradient import differentiable
from fusetune.members.memory import block_bytes, required_bytes
from fusetune.members.points import Combination, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

FORMS = (ResidentAverage, StreamingAverage)
FROZEN = ("bert.embeddings.", "bert.encoder.layer.0.")


@pytest.fixture
def frozen(copied_members: Path) -> MemberPool:
    """Members whose first layers are those of the first one."""
    folders = sorted(copied_members.iterdir())
    first = load_file(folders[0] / "model.safetensors")
    for folder in folders[1:]:
        own = load_file(folder / "model.safetensors")
        same = {n: t for n, t in first.items() if n.startswith(FROZEN)}
        save_file(own | same, folder / "model.safetensors", metadata={"format": "pt"})
    return MemberPool.open(copied_members)


def expected(pool: MemberPool, values: tuple[float, ...]) -> dict[str, Tensor]:
    files = [load_file(m.path / "model.safetensors") for m in pool.members]
    return {
        n: sum(v * f[n].double() for v, f in zip(values, files, strict=True)).float()
        for n in files[0]
    }


def test_they_are_found_by_their_bits(frozen: MemberPool, bert_members: Path) -> None:
    names = {n for n in frozen.members[0].tensors if n.startswith(FROZEN)}
    assert frozen.constant == names
    assert len(names) > 15
    assert MemberPool.open(bert_members).constant == frozenset()


def test_a_late_difference_counts(frozen: MemberPool) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    path = frozen.members[2].path / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    tensors[name].view(-1)[-1] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    assert name not in MemberPool.open(path.parents[1]).constant


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", [(0.5, 0.25, 0.25), (0.0, 1.0, 0.0), (2.0, -0.75, 0.5)])
def test_values_are_those_of_the_plain_sum(
    form: Callable[..., Average],
    values: tuple[float, ...],
    frozen: MemberPool,
    bert: PreTrainedModel,
) -> None:
    average = form(frozen, bert)
    point = Combination(values) if sum(values) != 1.0 else FusionWeights(values)
    own = {n: torch.ones(i.shape) for n, i in frozen.members[0].tensors.items()}
    average.into_model(OwnModel.of(own))  # must leave nothing behind
    average.into_model(point)
    wanted, exported = expected(frozen, values), average.tensors(point)
    for name, tensor in bert.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(exported[name], tensor)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_products_and_tiles_count_them(
    form: Callable[..., Average], frozen: MemberPool, bert: PreTrainedModel
) -> None:
    average = form(frozen, bert)
    average.into_model(FusionWeights.uniform(3))
    with differentiable(bert):
        bert(torch.arange(6).view(1, 6)).logits.square().sum().backward()
        products = average.gradient_products()
        gradients = {
            n: p.grad.double() for n, p in bert.named_parameters() if p.grad is not None
        }
    files = [load_file(m.path / "model.safetensors") for m in frozen.members]
    wanted = [sum(float((g * f[n]).sum()) for n, g in gradients.items()) for f in files]
    np.testing.assert_allclose(products, wanted, rtol=1e-4)
    squares = sum((tile.double() ** 2).sum(dim=1) for tile in average.member_tiles())
    lengths = [sum(float((t.double() ** 2).sum()) for t in f.values()) for f in files]
    np.testing.assert_allclose(squares, lengths, rtol=1e-9)


def test_they_take_no_room(
    frozen: MemberPool, bert_members: Path, bert: PreTrainedModel
) -> None:
    whole = MemberPool.open(bert_members)
    constant = sum(frozen.members[0].tensors[n].nbytes for n in frozen.constant)
    assert block_bytes(whole) - block_bytes(frozen) >= 3 * constant
    planned = choose(frozen)
    assert planned.form == "resident"
    assert planned.needed == required_bytes(frozen)
    assert planned.parameters == frozen.num_parameters - constant // 4


def test_the_plan_can_be_overridden(frozen: MemberPool, bert: PreTrainedModel) -> None:
    assert isinstance(plan(frozen, bert), ResidentAverage)
    streaming = choose(frozen, form="streaming")
    assert (streaming.needed, streaming.seconds > 0.0) == (0, True)
    assert "on the disk" in str(streaming)
    assert isinstance(build(streaming, frozen, bert), StreamingAverage)
    assert choose(frozen, limit=required_bytes(frozen) - 1).form == "streaming"
    assert choose(frozen, limit=0, form="resident").form == "resident"
    with pytest.raises(MemberError, match="accelerator"):
        choose(frozen, form="host")


def test_members_in_the_host_s_memory_give_the_same_bits(
    frozen: MemberPool, bert: PreTrainedModel
) -> None:
    weights = FusionWeights((0.5, 0.2, 0.3))
    beside = ResidentAverage(frozen, bert).tensors(weights)
    host = ResidentAverage(frozen, bert, host=True).tensors(weights)
    assert all(torch.equal(beside[n], host[n]) for n in beside)


def test_memory_that_cannot_be_had_after_all(
    frozen: MemberPool, bert: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(ResidentAverage, "_read", full)
    assert isinstance(plan(frozen, bert), StreamingAverage)
