from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import generate
from fusetune.errors import ModelError


def test_both_ways_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}

    def tiny() -> LlamaForCausalLM:
        return LlamaForCausalLM(LlamaConfig(vocab_size=2000, num_attention_heads=2, **shape))

    def refuse(name: str) -> None:
        raise ModelError("not installed")

    monkeypatch.setattr(generate, "base", tiny)
    monkeypatch.setattr(generate, "resolve", refuse)
    generate.write_rows(tmp_path, 12)
    options = argparse.Namespace(precision="float32", usual_rows=10, repeats=1, padded=True)
    found = generate.measure(tmp_path, options, torch.device("cpu"))
    assert found["same_texts"] == 1.0
    assert found["loss_difference"] < 1e-3
    assert {"speedup", "speedup_cpu", "padded_speedup", "padded_speedup_cpu"} <= set(found)
