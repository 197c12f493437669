"""The model that the training began with, as one more member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from fusetune.errors import MemberError
from fusetune.members.average import plan
from fusetune.members.base_member import add_base, state_of, write_base
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from tests import tiny

SaveMembers = Callable[..., Path]


def pretrained(seed: int, num_labels: int = 2) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = tiny.bert_config(
        vocab_size=31,
        hidden_size=8,
        intermediate_size=12,
        max_position_embeddings=10,
        num_labels=num_labels,
    )
    return BertForSequenceClassification(config)


def test_what_the_pretrained_model_lacks_is_the_first_members(
    save_members: SaveMembers, tmp_path: Path
) -> None:
    pool = MemberPool.open(save_members(k=2))
    base = pretrained(5)
    head = {"classifier.weight", "classifier.bias"}
    folder = write_base(tmp_path / "base", pool, state_of(base), head)
    extended = add_base(pool, folder)
    assert extended.trained == (0, 1)
    assert extended.names[2] == "base"
    assert extended.last.path == pool.members[1].path
    model = pretrained(6)
    plan(extended, model).into_model(FusionWeights.one_hot(2, 3))
    for name, tensor in model.state_dict().items():
        expected = pool.load_tensor(0, name) if name in head else base.state_dict()[name]
        torch.testing.assert_close(tensor, expected)
    # It is written once, and of another kind not at all.
    before = (folder / "model.safetensors").stat().st_mtime_ns
    write_base(folder, pool, {}, head)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(MemberError, match=r"differs in classifier.bias \(\(3,\), not \(2,\)\)"):
        write_base(tmp_path / "other", pool, state_of(pretrained(0, num_labels=3)))
    with pytest.raises(MemberError, match=r"has no bert\.embeddings"):
        write_base(tmp_path / "other", pool, {})


def test_its_tensors_are_taken_in_the_layout_of_the_files(
    save_members: SaveMembers, tmp_path: Path
) -> None:
    def build() -> PreTrainedModel:
        sizes = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        return MixtralForCausalLM(
            MixtralConfig(**sizes, **heads, num_hidden_layers=1, num_local_experts=2)
        )

    pool = MemberPool.open(save_members(build, k=2))
    base = build()
    extended = add_base(
        pool, write_base(tmp_path / "base", pool, state_of(base, tuple(pool.tensors)))
    )
    model = build()
    plan(extended, model).into_model(FusionWeights.one_hot(2, 3))
    assert any("experts.gate_up_proj" in name for name in model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name])


@pytest.mark.parametrize("dora", [False, True])
def test_under_adapters_it_is_the_base_exactly(tmp_path: Path, dora: bool) -> None:
    base = pretrained(1)
    base.save_pretrained(tmp_path / "base-model")
    for step in range(2):
        settings = peft.LoraConfig(
            r=2,
            target_modules=["query"],
            modules_to_save=["classifier"],
            use_dora=dora,
            task_type="SEQ_CLS",
        )
        plain = BertForSequenceClassification.from_pretrained(tmp_path / "base-model")
        adapted = peft.get_peft_model(plain, settings)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.copy_(torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / f"members/step-{step}")
    pool = MemberPool.open(tmp_path / "members")
    folder = write_base(tmp_path / "base", pool, state_of(base), {"classifier.weight"})
    extended = add_base(pool, folder)
    assert extended.adapters is not None
    assert not any("lora" in n for n in load_file(folder / "adapter_model.safetensors"))
    model: nn.Module = extended.adapters.base.model
    average = plan(extended, model)
    average.into_model(FusionWeights((0.0, 0.5, 0.5)))  # then back, after the base was changed
    average.into_model(FusionWeights.one_hot(2, 3))
    for name, tensor in model.state_dict().items():
        expected = base.state_dict()[name]
        if name == "classifier.weight":
            expected = pool.load_tensor(0, name)
        assert torch.equal(tensor, expected), name
