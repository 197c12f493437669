from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fusetune.errors import MemberError
from fusetune.evaluation import candidates
from fusetune.members.adapter_export import ExportForm
from fusetune.members.average import QuantisedAverage, StreamingAverage, for_files, plan
from fusetune.members.averaging_plan import choose
from fusetune.members.base import base_sha256
from fusetune.members.export import export
from fusetune.members.gradient import differentiable
from fusetune.members.points import Combination, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

pytest.importorskip("bitsandbytes", reason="quantised layers are of bitsandbytes")

W = FusionWeights((0.5, 0.2, 0.3))
IDS = torch.arange(1, 13).view(2, 6)
FOUR = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}
EIGHT = {"load_in_8bit": True}


def llama() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=31,
        num_attention_heads=2,
        attention_bias=True,
        tie_word_embeddings=True,
        **sizes,
    )
    return LlamaForCausalLM(config)


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=31, num_attention_heads=2, num_labels=3, **sizes)
    return BertForSequenceClassification(config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=31, n_positions=10, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


Make = Callable[[], PreTrainedModel]
CASES: dict[str, tuple[Make, dict[str, Any], dict[str, Any]]] = {
    "alpha": (llama, FOUR, {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"]}),
    "rslora and patterns": (
        llama,
        FOUR,
        {
            "r": 2,
            "lora_alpha": 3,
            "use_rslora": True,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"down_proj": 9, "q_proj": 2},
        },
    ),
    "head": (bert, FOUR, {"r": 2, "lora_alpha": 5, "target_modules": ["query", "dense"]}),
    "conv1d": (gpt2, FOUR, {"r": 2, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"]}),
    "biases": (bert, FOUR, {"r": 2, "target_modules": ["query"], "bias": "all"}),
    "embedding": (
        bert,
        FOUR,
        {"r": 2, "lora_alpha": 3, "target_modules": ["word_embeddings", "value"]},
    ),
    "dora": (llama, FOUR, {"r": 2, "target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "8 bits": (llama, EIGHT, {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]}),
}


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                shift = 1.5 if "magnitude" in name else 0.0
                parameter.copy_(shift + 0.3 * torch.randn(parameter.shape, generator=generator))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def relative(found: Tensor, wanted: Tensor) -> float:
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp(min=1e-12))


class Family:
    """Adapters that PEFT made on one quantised base, and what is known of each.

    Attributes:
        alone: Logits of each adapter on the quantised base, computed by PEFT.
        merged: State of each adapter, merged by PEFT into the dequantised base.
    """

    def __init__(self, folder: Path, case: str) -> None:
        make, self.packing, options = CASES[case]
        self.folder, self.members = folder / "base", folder / "members"
        torch.manual_seed(5)
        made = make()
        with torch.no_grad():  # biases begin as zeros, which hide mistakes
            for name, parameter in made.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        made.save_pretrained(self.folder)
        self.kind = type(made)
        task = "SEQ_CLS" if self.kind is BertForSequenceClassification else "CAUSAL_LM"
        self.alone: list[Tensor] = []
        self.merged: list[dict[str, Tensor]] = []
        for i in range(3):
            config = peft.LoraConfig(task_type=task, **options)
            adapted = peft.get_peft_model(self.load(), config)
            randomise(adapted, seed=i)
            place = self.members / f"step-{i}"
            adapted.save_pretrained(place, save_embedding_layers=False)
            adapted.eval()
            self.alone.append(logits(adapted))
            plain = self.load().dequantize().float()
            plain = peft.PeftModel.from_pretrained(plain, place).merge_and_unload()
            self.merged.append({n: t.clone() for n, t in plain.state_dict().items()})

    def load(self) -> PreTrainedModel:
        skipped = ["classifier", "lm_head"]
        packing = BitsAndBytesConfig(**self.packing, llm_int8_skip_modules=skipped)
        options = {"quantization_config": packing, "device_map": {"": "cpu"}}
        return self.kind.from_pretrained(self.folder, **options).eval()

    def pool(self) -> MemberPool:
        return MemberPool.open(self.members, base=self.load)

    def wanted(self, values: tuple[float, ...]) -> dict[str, Tensor]:
        pairs = list(zip(values, self.merged, strict=True))
        return {n: sum(v * m[n].double() for v, m in pairs) for n in self.merged[0]}

    def plain(self, values: tuple[float, ...]) -> PreTrainedModel:
        """The dequantised model with averaged weights."""
        model = self.load().dequantize().float().eval()
        model.load_state_dict({n: t.float() for n, t in self.wanted(values).items()})
        return model


@pytest.fixture
def family(tmp_path: Path) -> Callable[[str], Family]:
    return lambda case: Family(tmp_path, case)


@pytest.mark.parametrize("case", CASES)
def test_average_is_that_of_the_merged_models(
    case: str, family: Callable[[str], Family]
) -> None:
    adapters = family(case)
    pool = adapters.pool()
    model = pool.adapters.base.model
    average = plan(pool, model)
    assert isinstance(average, QuantisedAverage)
    before = base_sha256(model, {n for m in pool.members for n in m.whole})
    limit = 1e-5 if case != "8 bits" else 3e-2  # their layers round the inputs as well
    for point in (W, FusionWeights((0.0, 0.4, 0.6)), Combination((0.7, -0.4, 0.5)), W):
        average.into_model(point)
        assert relative(logits(model), logits(adapters.plain(point.values))) < limit
        wanted = adapters.wanted(point.values)
        for name, tensor in average.tensors(point).items():
            # Transformers dequantises a Conv1D into a Linear; files have it as it was.
            conv1d = case == "conv1d" and ".c_" in name and tensor.ndim == 2
            assert relative(tensor.t() if conv1d else tensor, wanted[name]) < 1e-5, name
    for i, alone in enumerate(adapters.alone):  # as PEFT computes with one of them
        average.into_model(FusionWeights.one_hot(i, 3))
        assert relative(logits(model), alone) < 1e-5
    if case not in ("biases", "embedding"):  # nothing was written into the quantised base
        assert base_sha256(model, {n for m in pool.members for n in m.whole}) == before
    streamed = StreamingAverage(adapters.pool(), None).tensors(W)
    for name, tensor in average.tensors(W).items():
        assert relative(tensor, streamed[name]) < 1e-5


@pytest.mark.parametrize("case", ["rslora and patterns", "dora"])
def test_gradients_with_respect_to_the_coefficients(
    case: str, family: Callable[[str], Family]
) -> None:
    adapters = family(case)
    pool, values = adapters.pool(), (0.5, 0.0, 0.3)
    quantised, plain = pool.adapters.base.model, adapters.plain(values)
    found = []
    for model in (quantised, plain):
        average = plan(pool, model)
        assert isinstance(average, QuantisedAverage) is (model is quantised)
        with differentiable(model):
            average.into_model(Combination(values))
            model(input_ids=IDS, labels=IDS).loss.backward()
            found.append(average.gradient_products())
    np.testing.assert_allclose(found[0], found[1], rtol=2e-4, atol=1e-6)


def test_a_model_of_its_own_takes_the_place_of_the_levels_for_a_while(
    family: Callable[[str], Family],
) -> None:
    adapters = family("conv1d")
    pool = adapters.pool()
    average = plan(pool, pool.adapters.base.model)
    tensors = {n: t for n, t in average.tensors(W).items() if t.is_floating_point()}
    own = OwnModel.of({n: t + 0.01 * torch.randn_like(t) for n, t in tensors.items()})
    average.into_model(own)
    plain = GPT2LMHeadModel(average.model.config).eval()
    plain.load_state_dict({**average.tensors(own)}, strict=False)
    assert relative(logits(average.model), logits(plain)) < 1e-5
    average.into_model(W)
    assert relative(logits(average.model), logits(adapters.plain(W.values))) < 1e-5


def test_the_fused_folder_is_plain_or_an_adapter_of_the_quantised_base(
    family: Callable[[str], Family], tmp_path: Path
) -> None:
    adapters = family("rslora and patterns")
    pool = adapters.pool()
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    evaluated = logits(average.model)
    merged = export(average, W, pool, tmp_path / "merged")
    assert relative(logits(LlamaForCausalLM.from_pretrained(merged).eval()), evaluated) < 1e-5
    from_files = export(for_files(pool), W, pool, tmp_path / "files")
    ours, theirs = (load_file(f / "model.safetensors") for f in (merged, from_files))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert '"quantization": "4bit nf4, double"' in (merged / "fusion.json").read_text()
    assert "quantization_config" not in (merged / "config.json").read_text()
    folder = export(average, W, pool, tmp_path / "adapter", form=ExportForm.parse("adapter"))
    alone = peft.PeftModel.from_pretrained(adapters.load(), folder).eval()
    assert alone.peft_config["default"].r == 3 * 2
    assert relative(logits(alone), evaluated) < 1e-5


def test_a_base_quantised_otherwise_is_another_base(family: Callable[[str], Family]) -> None:
    adapters = family("alpha")
    folder, model = adapters.folder, adapters.load()
    digest = base_sha256(model)
    assert base_sha256(adapters.load()) == digest  # quantising is no matter of chance
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert base_sha256(wrapped) == digest
    simple = copy.copy(adapters)
    simple.packing = {**FOUR, "bnb_4bit_use_double_quant": False}
    assert base_sha256(simple.load()) != digest
    # Adapters of other programs do not know their base; evaluations are kept apart even so.
    plain = MemberPool.open(adapters.members, lambda: LlamaForCausalLM.from_pretrained(folder))
    assert plain.fingerprint != adapters.pool().fingerprint


def test_what_would_be_written_into_levels_is_refused(family: Callable[[str], Family]) -> None:
    adapters = family("alpha")
    pool = adapters.pool()
    for form in ("resident", "streaming"):
        with pytest.raises(MemberError, match=r"the form .* writes into its weights"):
            choose(pool, form=form)
    with pytest.raises(MemberError, match=r"weights are quantised .4bit nf4"):
        pool.average_into(adapters.load(), W)
    # A stack of candidates copies tensors, and these do not have what stands beside a layer.
    count, note = candidates.plan(4, adapters.load(), scorer=None)
    assert (count, note) == (1, "a quantised base holds one candidate")
