from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fusetune.members.aligned import aligned_average
from fusetune.members.alignment import align, align_block, squared_distance
from fusetune.members.blocks import Block, find_blocks
from fusetune.members.pool import MemberPool

BASE = {
    "vocab_size": 19,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 10,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GROUPED = BASE | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
RELATIVE = BASE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DISTIL = {"vocab_size": 19, "dim": 24, "hidden_dim": 10, "n_layers": 2, "n_heads": 6}
DISTIL |= {"initializer_range": 0.3}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BASE)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BASE)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**BASE)),
    "grouped": lambda: LlamaForSequenceClassification(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3ForSequenceClassification(Qwen3Config(**GROUPED, head_dim=4)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
    "deberta": lambda: DebertaForSequenceClassification(DebertaConfig(**RELATIVE)),
    "deberta-v2": lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**RELATIVE)),
}
LAYERS = {"neurons": 10, "heads": 6}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def blocks_of(model: PreTrainedModel) -> tuple[Block, ...]:
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    return find_blocks(model.config.to_dict(), shapes)


def twin(
    tensors: Mapping[str, Tensor], blocks: tuple[Block, ...], seed: int = 0
) -> dict[str, Tensor]:
    """Every group and every unit in its group at a random other place.

    Written from scratch, by index lists over single rows, not with the package's slices.
    """
    rng = np.random.default_rng(seed)
    result = dict(tensors)
    for block in blocks:
        groups = rng.permutation(block.groups)
        units = [
            g * block.per_group + u for g in groups for u in rng.permutation(block.per_group)
        ]
        for parts, places in ((block.group_parts, groups), (block.unit_parts, units)):
            for part in parts:
                width = tensors[part.name].shape[part.dim] // len(places)
                rows = [int(p) * width + i for p in places for i in range(width)]
                result[part.name] = tensors[part.name].index_select(
                    part.dim, torch.tensor(rows)
                )
    return result


def logits(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    model.load_state_dict(dict(tensors))
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    with torch.inference_mode():
        return model(input_ids=ids).logits


def noisy(tensors: Mapping[str, Tensor], size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        n: t + size * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in tensors.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_twin_comes_back_to_the_last_bit(name: str) -> None:
    model = build(name)
    reference, blocks = tensors_of(model), blocks_of(model)
    other = twin(reference, blocks)
    expected = logits(model, reference)
    assert torch.allclose(logits(model, other), expected, atol=1e-5)  # a twin indeed
    assert squared_distance(reference, other) > 10.0
    found = align(reference, other, blocks)
    assert found.keys() == reference.keys()
    assert all(torch.equal(found[n], t) for n, t in reference.items())


@pytest.mark.parametrize("name", MODELS)
def test_an_aligned_member_computes_what_it_computed(name: str) -> None:
    """Also where the members have nothing to do with each other."""
    model = build(name)
    reference, blocks = tensors_of(model), blocks_of(model)
    other = noisy(twin(reference, blocks), 0.5)
    expected = logits(model, other)
    found = align(reference, other, blocks)
    assert any(not torch.equal(found[n], t) for n, t in other.items())
    assert torch.allclose(logits(model, found), expected, atol=1e-5)
    assert not torch.allclose(logits(model, reference), expected, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_noise_and_permutation_come_closer(name: str) -> None:
    model = build(name)
    reference, blocks = tensors_of(model), blocks_of(model)
    near = noisy(reference, 0.02)
    other = twin(near, blocks)
    found = align(reference, other, blocks)
    assert all(torch.equal(found[n], t) for n, t in near.items())  # the permutation is undone
    assert squared_distance(reference, found) < 0.1 * squared_distance(reference, other)


@pytest.mark.parametrize("name", ["bert", "grouped"])
def test_counts_of_one_block(name: str) -> None:
    model = build(name)
    reference, blocks = tensors_of(model), blocks_of(model)
    other = twin(reference, blocks)
    for block in blocks:
        same = align_block(block, reference, reference)
        assert (same.moved, same.before, same.after) == (0, 0.0, 0.0)
        back = align_block(block, reference, other)
        assert 0 < back.moved <= LAYERS[block.kind]
        assert back.before > 0.0
        assert back.after == 0.0
        assert back.tensors.keys() == {part.name for part, _ in block.parts}


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_best_of_all_that_keep_groups_together(seed: int) -> None:
    """Brute force over 2! x 3!² orders of query heads, on unrelated models."""
    model = build("grouped")
    reference = tensors_of(model)
    block = next(b for b in blocks_of(model) if b.kind == "heads")
    generator = torch.Generator().manual_seed(seed)
    other = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in reference.items()}
    orders = list(permutations(range(3)))
    distances = []
    for groups, first, second in product(permutations(range(2)), orders, orders):
        units = [3 * groups[0] + u for u in first] + [3 * groups[1] + u for u in second]
        moved = {}
        for part, count in block.parts:
            rows = part.slices(other[part.name], count)
            places = torch.tensor(groups if count == 2 else units)
            moved[part.name] = part.restore(rows[places], other[part.name])
        distances.append(squared_distance(reference, moved))
    found = align_block(block, reference, other)
    assert found.after == pytest.approx(min(distances), rel=1e-6)
    assert found.after <= found.before == pytest.approx(distances[0])


def test_equal_units_stay_in_their_places() -> None:
    model = build("bert")
    reference, blocks = tensors_of(model), blocks_of(model)
    for part, _ in blocks[0].parts:
        reference[part.name].movedim(part.dim, 0)[2:8] = 0.0  # dead neurons
    other = noisy(reference, 0.0)
    assert align_block(blocks[0], reference, other).moved == 0


def test_a_member_that_diverged_is_left_as_it_is() -> None:
    model = build("grouped")
    reference, blocks = tensors_of(model), blocks_of(model)
    other = twin(reference, blocks)
    broken = {n: torch.full_like(t, torch.nan) for n, t in other.items()}
    for block in blocks:
        found = align_block(block, reference, broken)
        assert found.moved == 0
        assert np.isnan(found.after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = build("grouped")
    reference = {n: t.to(dtype) for n, t in tensors_of(model).items()}
    blocks = blocks_of(model)
    found = align(reference, twin(reference, blocks), blocks)
    assert all(torch.equal(found[n], t) and t.dtype == dtype for n, t in reference.items())


@pytest.mark.parametrize("name", ["bert", "grouped"])
def test_soft_plans(name: str) -> None:
    model = build(name)
    reference, blocks = tensors_of(model), blocks_of(model)
    other = twin(reference, blocks)
    nearly = align(reference, other, blocks, regularisation=1e-3)
    assert all(torch.allclose(nearly[n], t, atol=1e-4) for n, t in reference.items())
    # With much regularisation every unit is the mean of all.
    block = blocks[0]
    flat = align_block(block, reference, other, regularisation=1e4)
    for part, count in block.parts:
        rows = part.slices(flat.tensors[part.name], count)
        mean = part.slices(other[part.name], count).mean(0, keepdim=True)
        assert torch.allclose(rows, mean.expand_as(rows), atol=1e-3)
    with pytest.raises(ValueError, match=r"must be positive; got 0\.0"):
        align(reference, other, blocks, regularisation=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "roberta", "grouped"])
def test_the_mean_of_aligned_twins_is_the_reference(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build(name).to(dtype)
    reference, blocks = tensors_of(model), blocks_of(model)
    for i in range(4):
        model.load_state_dict(twin(reference, blocks, seed=i) if i else reference)
        model.save_pretrained(tmp_path / "members" / f"step-{i}")
    average = aligned_average(MemberPool.open(tmp_path / "members"))
    assert average.tensors.keys() <= reference.keys()
    for n, t in average.tensors.items():
        assert t.dtype == dtype
        assert torch.equal(t, reference[n]), n
    for kind, movements in average.movements.items():
        assert [m.units for m in movements] == [2 * LAYERS[kind]] * 3
        assert all(m.moved > 0 and m.before > 0.0 and m.after == 0.0 for m in movements)


def test_the_mean_of_members_in_place_is_the_plain_mean(tmp_path: Path) -> None:
    model = build("bert")
    reference = tensors_of(model)
    members = [reference, noisy(reference, 0.01), noisy(reference, -0.02)]
    for i, tensors in enumerate(members):
        model.load_state_dict(tensors)
        model.save_pretrained(tmp_path / "members" / f"step-{i}")
    average = aligned_average(MemberPool.open(tmp_path / "members"))
    assert average.moved == 0
    for name, tensor in average.tensors.items():
        mean = sum(m[name].double() for m in members) / 3
        assert torch.allclose(tensor.double(), mean, atol=1e-7), name
    again = aligned_average(MemberPool.open(tmp_path / "members"))
    assert all(torch.equal(t, again.tensors[n]) for n, t in average.tensors.items())
