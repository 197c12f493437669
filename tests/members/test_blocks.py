from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from fusetune.errors import StageError
from fusetune.members.blocks import Block, Part, find_blocks
from fusetune.members.pool import Member

BASE = {
    "vocab_size": 19,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 10,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
}
GROUPED = BASE | {"num_key_value_heads": 2}
RELATIVE = BASE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DISTIL = {"vocab_size": 19, "dim": 24, "hidden_dim": 10, "n_layers": 2, "n_heads": 6}
T5 = {"vocab_size": 19, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}

SUPPORTED: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BASE)),
    "bare": lambda: BertModel(BertConfig(**BASE)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BASE)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
    "deberta": lambda: DebertaForSequenceClassification(DebertaConfig(**RELATIVE)),
    "deberta-v2": lambda: DebertaV2Model(DebertaV2Config(**RELATIVE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**BASE, mlp_bias=True, attention_bias=True)),
    "grouped": lambda: LlamaForSequenceClassification(LlamaConfig(**GROUPED)),
    "one-key": lambda: LlamaForCausalLM(LlamaConfig(**BASE, num_key_value_heads=1)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=6)),
}
GROUPS = {"grouped": 2, "one-key": 1, "qwen3": 2}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=19, n_embd=8, n_layer=1, n_head=2)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=2)),
    "decoder": lambda: BertModel(BertConfig(**BASE, is_decoder=True, add_cross_attention=True)),
}


def saved_blocks(model: PreTrainedModel, folder: Path) -> tuple[Member, tuple[Block, ...]]:
    model.save_pretrained(folder)
    member = Member.open(folder)
    return member, find_blocks(member.config, {n: t.shape for n, t in member.tensors.items()})


@pytest.mark.parametrize("name", SUPPORTED)
def test_units_of_every_layer_are_found(name: str, tmp_path: Path) -> None:
    member, blocks = saved_blocks(SUPPORTED[name](), tmp_path)
    assert Counter(block.kind for block in blocks) == {"neurons": 2, "heads": 2}
    for block in blocks:
        groups = 10 if block.kind == "neurons" else GROUPS.get(name, 6)
        assert (block.units, block.groups) == (10 if block.kind == "neurons" else 6, groups)
    used = Counter(part.name for block in blocks for part, _ in block.parts)
    assert set(used.values()) == {1}
    # In the layers, only what lives in the residual stream, or is one for all heads, is left.
    left = {n for n in member.tensors if ".0." in n and n not in used}
    assert left
    residual = (".output.dense.bias", "_lin.bias", "lin2.bias", "o_proj.bias", "down_proj.bias")
    assert all("norm" in n.lower() or n.endswith(residual) for n in left), left
    assert not any(n.endswith(("q_lin.bias", "k_lin.bias", "v_lin.bias")) for n in left)


@pytest.mark.parametrize("name", OTHERS)
def test_other_shapes_are_refused_with_the_supported_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"BERT, RoBERTa, .*LLaMA.*(has|lacks) ") as raised:
        saved_blocks(OTHERS[name](), tmp_path)
    assert "Leave otfusion out" in raised.value.hint


def test_the_message_names_the_tensor_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"has encoder\.layer\.0\.crossattention\.output"):
        saved_blocks(OTHERS["decoder"](), tmp_path)


def test_heads_that_the_configuration_does_not_explain(tmp_path: Path) -> None:
    member, _ = saved_blocks(SUPPORTED["bert"](), tmp_path)
    shapes = {n: t.shape for n, t in member.tensors.items()}
    with pytest.raises(StageError, match=r"\(24, 24\) does not divide into heads of 5"):
        find_blocks({**member.config, "head_dim": 5}, shapes)
    with pytest.raises(StageError, match=r"needs hidden_size and num_attention_heads"):
        find_blocks({"model_type": "bert"}, shapes)


def test_a_norm_over_all_heads_is_refused(tmp_path: Path) -> None:
    member, _ = saved_blocks(SUPPORTED["qwen3"](), tmp_path)
    shapes = {n: t.shape for n, t in member.tensors.items()}
    shapes["model.layers.1.self_attn.q_norm.weight"] = (36,)
    with pytest.raises(StageError, match=r"layers\.1\.self_attn\.q_norm\.weight .*heads of 6"):
        find_blocks(member.config, shapes)


def test_pruned_heads_count_as_they_are(tmp_path: Path) -> None:
    model = SUPPORTED["bert"]()
    state = model.state_dict()
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    for name in ("query", "key", "value"):
        shapes[f"bert.encoder.layer.1.attention.self.{name}.weight"] = (16, 24)
        shapes[f"bert.encoder.layer.1.attention.self.{name}.bias"] = (16,)
    shapes["bert.encoder.layer.1.attention.output.dense.weight"] = (24, 16)
    blocks = find_blocks(json.loads(model.config.to_json_string(use_diff=False)), shapes)
    assert [b.units for b in blocks if b.kind == "heads"] == [6, 4]


@pytest.mark.parametrize(("shape", "dim"), [((6, 5), 0), ((5, 6), 1), ((6,), 0)])
def test_slices_and_back(shape: tuple[int, ...], dim: int) -> None:
    tensor = torch.randn(shape)
    part = Part("x", dim)
    rows = part.slices(tensor, 3)
    assert rows.shape == (3, tensor.numel() // 3)
    assert torch.equal(rows[1], tensor.narrow(dim, 2, 2).movedim(dim, 0).reshape(-1))
    assert torch.equal(part.restore(rows, tensor), tensor)
