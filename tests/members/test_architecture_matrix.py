"""Members of every architecture: collected, averaged, written and loaded like any other model.

What `MemberCollector` keeps is averaged into a model (in memory and from the disk) and from
file to file, and held against the average made by hand of what `from_pretrained` loads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, RwkvConfig, RwkvForCausalLM

from fusetune.errors import MemberError
from fusetune.members.average import Average, ResidentAverage, StreamingAverage, for_files
from fusetune.members.export import export
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights
from fusetune.training.collect import MemberCollector
from tests.members.architectures import CONFIGURATIONS, build, inputs

WEIGHTS = FusionWeights((0.5, 0.2, 0.3))
STATISTICS = ("running_mean", "running_var")  # of batch normalisations
CONVERTED = (  # on loading and saving
    "GPTNeoXForCausalLM",
    "EsmForMaskedLM",
    "GraniteMoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "ViTForImageClassification",
    "ASTForAudioClassification",
    "LlavaForConditionalGeneration",
)
EXACT = {"rtol": 0.0, "atol": 0.0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def collect(model: PreTrainedModel, folder: Path, **options: Any) -> MemberPool:
    """Three members of a training that adds noise to parameters and running statistics."""
    collector = MemberCollector(folder, 3, collect_from=0.0, total_steps=3, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        with torch.no_grad():
            statistics = [b for n, b in model.named_buffers() if n.endswith(STATISTICS)]
            for tensor in (*model.parameters(), *statistics):
                noise = torch.randn(tensor.shape, generator=generator).abs()
                tensor.add_(0.1 * noise.to(tensor.dtype))
            for module in model.modules():  # a row without a gradient, which stays at zero
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0.0
        collector.step(model)
    return MemberPool.open(folder)


def by_hand(kind: type[PreTrainedModel], pool: MemberPool) -> dict[str, Tensor]:
    """Σ w_i θ_i of the models that `from_pretrained` makes of the members, in float32."""
    states = []
    for member in pool.members:
        model, info = kind.from_pretrained(
            member.path, output_loading_info=True, dtype=torch.float32
        )
        assert not info["missing_keys"], info
        assert not info["mismatched_keys"], info
        states.append(model.state_dict())
    return {
        name: sum(w * state[name] for w, state in zip(WEIGHTS.values, states, strict=True))
        if tensor.is_floating_point()
        else states[-1][name]
        for name, tensor in states[0].items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **limits: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor.float(), expected[name].float(), msg=lambda m, n=name: f"{n}: {m}", **limits
        )


def outputs(name: str, model: PreTrainedModel) -> list[Tensor]:
    """All floating-point results of a forward pass that stand by themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = model(**inputs(name, model), return_dict=True)
    tensors = [value for value in result.values() if isinstance(value, Tensor)]
    return [t for t in tensors if t.is_floating_point() and t.dim() > 0]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_averages_are_those_of_the_loaded_models(name: str, tmp_path: Path) -> None:
    model = build(name)
    pool = collect(model, tmp_path / "members")
    assert inspect(tmp_path / "members", own_model=True).model == name
    expected = by_hand(type(model), pool)
    resident, streaming = build(name), build(name)
    ResidentAverage(pool, resident).into_model(WEIGHTS)
    StreamingAverage(pool, streaming).into_model(WEIGHTS)
    assert_same(resident.state_dict(), expected, rtol=1e-5, atol=1e-6)
    assert_same(streaming.state_dict(), resident.state_dict(), **EXACT)
    folder = export(for_files(pool), WEIGHTS, pool, tmp_path / "fused")
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(loaded.state_dict(), resident.state_dict(), **EXACT)
    for filled in (resident, streaming, loaded):  # ties hold
        assert len(list(filled.parameters())) == len(list(model.parameters()))
    with torch.no_grad():
        results, wanted = outputs(name, loaded.eval()), outputs(name, resident)
    assert results
    torch.testing.assert_close(results, wanted, equal_nan=True)


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
@pytest.mark.parametrize("name", CONVERTED)
def test_gradients_with_respect_to_the_weights(
    name: str, form: Callable[..., Average], tmp_path: Path
) -> None:
    model = build(name)
    pool = collect(model, tmp_path / "members")
    average = form(pool, build(name))
    average.into_model(WEIGHTS)
    sum(t.square().sum() for t in outputs(name, average.model)).backward()
    gradients = {n: p.grad for n, p in average.model.named_parameters() if p.grad is not None}
    expected = []
    for member in pool.members:
        own = type(model).from_pretrained(member.path).state_dict()
        expected.append(sum(float((g * own[n]).double().sum()) for n, g in gradients.items()))
    assert average.gradient_products() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "ViTForImageClassification",
        "T5ForConditionalGeneration",  # of which parts are loaded in float32
        "MambaForCausalLM",
        "LlavaForConditionalGeneration",
    ],
)
def test_members_of_16_bits_stay_so(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(name).to(dtype)
    pool = collect(model, tmp_path / "members")
    expected = {n: t.to(dtype) for n, t in by_hand(type(model), pool).items()}
    filled = build(name).to(dtype)
    StreamingAverage(pool, filled).into_model(WEIGHTS)
    assert_same(filled.state_dict(), expected, rtol=0.01, atol=1e-4)  # half a unit in the last
    folder = export(for_files(pool), WEIGHTS, pool, tmp_path / "fused")
    loaded = type(model).from_pretrained(folder)
    assert loaded.dtype == dtype
    assert_same(loaded.state_dict(), filled.state_dict(), **EXACT)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_ties_hold_in_shards_and_model(name: str, tied: bool, tmp_path: Path) -> None:
    model = build(name, tie_word_embeddings=tied)
    pool = collect(model, tmp_path / "members")
    expected = by_hand(type(model), pool)
    folder = export(for_files(pool), WEIGHTS, pool, tmp_path / "fused", max_shard_size=2000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = type(model).from_pretrained(folder)
    embeddings, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert (head.weight is embeddings.weight) == tied
    assert_same(loaded.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_rescales_its_own_weights_is_refused(tmp_path: Path) -> None:
    def rwkv(**settings: int) -> PreTrainedModel:
        sizes = {"vocab_size": 19, "hidden_size": 8, "attention_hidden_size": 8}
        return RwkvForCausalLM(RwkvConfig(**sizes, num_hidden_layers=2, **settings))

    collector = MemberCollector(tmp_path / "out", 2, total_steps=2, collect_from=0.0)
    with pytest.raises(
        MemberError, match=r"^RwkvModel multiplies its own weights.*rescale_every"
    ) as caught:
        collector.step(rwkv(rescale_every=6))
    assert caught.value.hint.startswith("Set rescale_every to 0")
    assert not (tmp_path / "out").exists()
    collect(rwkv(rescale_every=0), tmp_path / "members")
    assert inspect(tmp_path / "members", own_model=True).model == "RwkvForCausalLM"
