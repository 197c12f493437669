from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    modeling_gguf_pytorch_utils,
)

from fusetune.errors import ModelError
from fusetune.models.gguf import converting, unpacked
from fusetune.models.load import resolve

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = 2


def llama() -> LlamaForCausalLM:
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=31, **shape, **heads, tie_word_embeddings=True)
    ).eval()


def write(model: LlamaForCausalLM, path: Path) -> None:
    """The model as a GGUF file; queries and keys in the order that llama.cpp wants."""
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    writer: Any = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{i}" for i in range(config.vocab_size)])
    tensors = model.state_dict()
    names = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    names |= {f"model.layers.0.{ours}.weight": f"blk.0.{its}" for ours, its in LAYER.items()}
    for ours, its in names.items():
        weight = tensors[ours].numpy()
        if its.endswith(("attn_q", "attn_k")):
            rows, columns = weight.shape
            split = weight.reshape(HEADS, 2, rows // HEADS // 2, columns)
            weight = split.swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(f"{its}.weight", weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_and_loads_without_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, ids = llama(), torch.arange(6)[None]
    write(model, tmp_path / "tiny.gguf")
    usual = modeling_gguf_pytorch_utils.tqdm
    source = resolve(str(tmp_path), gguf_file="tiny.gguf")
    source.check()
    loaded = source.build(AutoModelForCausalLM.from_pretrained)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert "GGUF tensors" not in capsys.readouterr().err
    assert modeling_gguf_pytorch_utils.tqdm is usual
    loaded.save_pretrained(tmp_path / "plain")  # as members and fused/ are
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_the_configuration_is_read_once_and_given_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(llama(), tmp_path / "tiny.gguf")
    source = resolve(str(tmp_path), gguf_file="tiny.gguf")
    first = source.config()
    first.hidden_size = 1

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    assert source.config().hidden_size == 8


def test_bars_come_back_after_a_load_that_failed() -> None:
    pytest.importorskip("gguf")
    usual = modeling_gguf_pytorch_utils.tqdm
    with contextlib.suppress(OSError), converting():
        assert modeling_gguf_pytorch_utils.tqdm(range(3)).disable
        raise OSError
    assert modeling_gguf_pytorch_utils.tqdm is usual


def test_weights_of_a_packed_file_become_a_plain_model(tmp_path: Path) -> None:
    packed = llama()
    packed.config.quantization_config = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    ids = torch.arange(6)[None]
    wanted = packed(ids).logits
    plain = unpacked(packed)
    torch.testing.assert_close(plain(ids).logits, wanted)
    assert plain.lm_head.weight.data_ptr() == plain.model.embed_tokens.weight.data_ptr()
    assert not hasattr(plain.config, "quantization_config")
    plain.save_pretrained(tmp_path / "plain")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(again(ids).logits, wanted)


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"no file b.gguf. GGUF files there: a.gguf"):
        resolve(str(tmp_path), gguf_file="b.gguf")
