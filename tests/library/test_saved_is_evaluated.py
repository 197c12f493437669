"""What `fuse` evaluates is what the saved folder loads as: precision, configuration, code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import fusetune
from fusetune.errors import ModelError

SMALL: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
IDS = torch.arange(3, 10)[None]

CODE = {
    "configuration_own.py": """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own-of-the-tests"

    def __init__(self, width=8, **more):
        self.width = width
        super().__init__(**more)
""",
    "modeling_own.py": """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from .configuration_own import OwnConfig

class OwnForSequenceClassification(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.emb = torch.nn.Embedding(99, config.width)
        self.head = torch.nn.Linear(config.width, 2)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **more):
        return SequenceClassifierOutput(logits=self.head(self.emb(input_ids).mean(1)))
""",
}


def loss(model: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {"loss": float(model(input_ids=IDS)[0].double().pow(2).mean())}


def save(build: Callable[[], PreTrainedModel], folder: Path) -> None:
    for step in range(3):
        torch.manual_seed(step)
        model = build()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / f"checkpoint-{step}")


def change(folder: Path, **settings: object) -> None:
    for path in folder.glob("checkpoint-*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def fused(folder: Path, **options: Any) -> fusetune.Fused:
    given = {"evaluate": loss, "objectives": ["loss"], "budget": 4, "device": "cpu"}
    return fusetune.fuse(folder, **{**given, **options})


@pytest.fixture
def llamas(tmp_path: Path) -> Path:
    save(lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), tmp_path / "out")
    return tmp_path / "out"


class TestPrecision:
    @pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
    def test_is_that_of_the_files(self, llamas: Path, tmp_path: Path, key: str) -> None:
        change(llamas, dtype=None)
        change(llamas, **{key: "bfloat16"})
        result = fused(llamas)
        assert {p.dtype for p in result.model().parameters()} == {torch.float32}
        again = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "fused"))
        assert again.dtype == torch.float32
        assert loss(again)["loss"] == pytest.approx(result.values["loss"], rel=1e-6)

    def test_of_a_model_of_one_s_own_is_saved(self, llamas: Path, tmp_path: Path) -> None:
        def bfloat16() -> nn.Module:
            return LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16)

        result = fused(llamas, model_init=bfloat16)
        again = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "fused"))
        assert again.dtype == torch.bfloat16
        assert loss(again)["loss"] == result.values["loss"]

    def test_of_files_with_several_is_the_configuration_s(
        self, tmp_path: Path, llamas: Path
    ) -> None:
        save(lambda: mixed(LlamaForCausalLM(LlamaConfig(**SMALL))), tmp_path / "mixed")
        change(tmp_path / "mixed", dtype="bfloat16")
        result = fused(tmp_path / "mixed")
        again = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "fused"))
        assert {p.dtype for p in result.model().parameters()} == {torch.bfloat16}
        assert again.dtype == torch.bfloat16
        assert loss(again)["loss"] == result.values["loss"]


def mixed(model: PreTrainedModel) -> PreTrainedModel:
    model.to(torch.bfloat16)
    model.get_submodule("lm_head").to(torch.float32)
    return model


class TestConfiguration:
    def test_of_another_function_is_refused(self, llamas: Path) -> None:
        rope = {"rope_type": "default", "rope_theta": 100.0}
        with pytest.raises(
            ModelError, match=r"rope_parameters\.rope_theta: 100\.0 != 10000\.0"
        ):
            fused(
                llamas,
                model_init=lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)),
            )

    def test_of_another_tokenizer_or_dropout_may_differ(self, llamas: Path) -> None:
        config = LlamaConfig(**SMALL, eos_token_id=7, attention_dropout=0.5, use_cache=False)
        assert fused(llamas, model_init=lambda: LlamaForCausalLM(config)).values

    def test_is_the_last_member_s(self, llamas: Path, tmp_path: Path) -> None:
        path = llamas / "checkpoint-2" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 3}))
        result = fused(llamas)
        assert result.model().config.pad_token_id == 3  # type: ignore[union-attr]
        again = json.loads((result.save(tmp_path / "fused") / "config.json").read_text())
        assert again["pad_token_id"] == 3


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkpoints of a class that comes with them."""
    package = tmp_path / "own_code_of_the_tests"
    package.mkdir()
    for name, text in {"__init__.py": "", **CODE}.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from own_code_of_the_tests import configuration_own, modeling_own  # type: ignore

    make = modeling_own.OwnForSequenceClassification
    configuration_own.OwnConfig.register_for_auto_class()
    make.register_for_auto_class("AutoModelForSequenceClassification")
    save(lambda: make(configuration_own.OwnConfig()), tmp_path / "out")
    yield tmp_path / "out"
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


class TestCode:
    def test_runs_by_consent_and_is_saved(self, own_code: Path, tmp_path: Path) -> None:
        result = fused(own_code, trust_remote_code=True)
        folder = result.save(tmp_path / "fused")
        assert {*CODE} <= {file.name for file in folder.iterdir()}
        again = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=True
        )
        assert loss(again)["loss"] == pytest.approx(result.values["loss"], rel=1e-6)

    def test_does_not_run_without(self, own_code: Path) -> None:
        with pytest.raises(ModelError, match="trust_remote_code=True"):
            fused(own_code)
