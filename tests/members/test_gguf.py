"""GGUF files as members: read, their levels as float32 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fusetune.members.average import plan
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights

gguf = pytest.importorskip("gguf", reason="an extra of its own")

HEADS, WIDTH, INNER, LAYERS = 2, 32, 64, 1
TOKENS = ("<unk>", "<s>", "</s>", *"abcdefghijklm")


def permuted(weight: torch.Tensor) -> torch.Tensor:
    """Rows of a query or key as llama.cpp orders them."""
    half = weight.reshape(HEADS, 2, WIDTH // HEADS // 2, weight.shape[1])
    return half.swapaxes(1, 2).reshape(weight.shape)


def write(file: Path, model: LlamaForCausalLM) -> None:
    writer: Any = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    state = model.state_dict()
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
        "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }
    for theirs, ours in names.items():
        tensor = state[f"{theirs}.weight"]
        if theirs.endswith(("q_proj", "k_proj")):
            tensor = permuted(tensor)
        data = tensor.contiguous().numpy()
        if theirs.endswith(("proj",)):  # 8 bits, as of a quantised file
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(
                f"{ours}.weight", gguf.quants.quantize(data, kind), raw_dtype=kind
            )
        else:
            writer.add_tensor(f"{ours}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_of_gguf_are_read(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    models = [LlamaForCausalLM(config) for _ in range(2)]
    for step, model in enumerate(models, 1):
        (tmp_path / f"out/checkpoint-{step}").mkdir(parents=True)
        write(tmp_path / f"out/checkpoint-{step}/model-q8.gguf", model)
    looked = inspect(tmp_path / "out")
    assert not looked.errors
    pool = MemberPool.open(tmp_path / "out", copies=tmp_path / "copies")
    assert [m.step for m in pool.members] == [1, 2]
    shapes = {name: spec.shape for name, spec in pool.tensors.items()}
    assert {n: t.shape for n, t in looked.members[0].tensors.items()} == shapes
    fused = AutoModelForCausalLM.from_pretrained(pool.members[0].loadable)
    plan(pool, fused).into_model(FusionWeights.uniform(2))
    for name, tensor in fused.state_dict().items():
        mean = sum(model.state_dict()[name] for model in models) / 2
        level = 0.02 if name.endswith("proj.weight") else 1e-6
        torch.testing.assert_close(tensor, mean, rtol=0.0, atol=level * float(mean.abs().max()))
