"""Adapters as PEFT saves them by default: embeddings, added tokens, experts, single rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import MemberError, StageError
from fusetune.members.adapter_export import ExportForm
from fusetune.members.average import StreamingAverage, for_files, plan
from fusetune.members.export import export
from fusetune.members.mergekit import check_can_be_laid
from fusetune.members.points import Combination
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights
from fusetune.training.collect import MemberCollector

W = FusionWeights((0.5, 0.2, 0.3))
IDS = torch.arange(1, 9).view(2, 4)
SMALL = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
}


def llama(**more: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **more))


def tied() -> PreTrainedModel:
    return llama(tie_word_embeddings=True)


def qwen() -> PreTrainedModel:
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts, head_dim=4))


def gpt_oss() -> PreTrainedModel:  # which keeps its experts `in x out`
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return GptOssForCausalLM(GptOssConfig(**SMALL, **experts, head_dim=4))


def resized(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(7)
    model.resize_token_embeddings(35, mean_resizing=False)
    return model


@dataclass(frozen=True)
class Kind:
    """How adapters are trained and saved."""

    make: Callable[[], PreTrainedModel]
    options: dict[str, Any]
    prepare: Callable[[PreTrainedModel], PreTrainedModel] = field(default=lambda m: m)


Q = ["q_proj"]
KINDS = {
    "head and embedding": Kind(
        llama, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}
    ),
    "added tokens": Kind(llama, {"target_modules": Q}, resized),
    "added tokens, tied": Kind(tied, {"target_modules": Q}, resized),
    "added tokens, targeted": Kind(
        llama, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, resized
    ),
    "added tokens, saved": Kind(
        llama,
        {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]},
        resized,
    ),
    "tied, saved and kept equal": Kind(
        tied,
        {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied, targeted and kept equal": Kind(
        tied, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    ),
    "single rows": Kind(llama, {"target_modules": Q, "trainable_token_indices": [3, 5]}),
    "single rows, tied": Kind(tied, {"target_modules": Q, "trainable_token_indices": [3, 5]}),
    "single rows, added": Kind(
        llama,
        {
            "target_modules": Q,
            "trainable_token_indices": {"embed_tokens": [31, 33], "lm_head": [32]},
        },
        resized,
    ),
    "experts": Kind(qwen, {"target_modules": "all-linear", "lora_alpha": 5}),
    "experts' ranks": Kind(
        qwen,
        {
            "target_modules": Q,
            "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
            "rank_pattern": {"gate_up_proj": 3},
            "alpha_pattern": {"down_proj": 9},
            "use_rslora": True,
        },
    ),
    "experts, in x out": Kind(
        gpt_oss,
        {"target_modules": Q, "target_parameters": ["down_proj", "gate_up_proj"]},
    ),
    "router alone": Kind(qwen, {"target_modules": [], "target_parameters": ["gate.weight"]}),
}


def change(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


class Saved:
    """Three adapters on one base, saved by PEFT; and their merged models, made by PEFT."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        save: Callable[[Any, Path], object] = lambda model, place: model.save_pretrained(place),
        loader: Any = transformers.AutoModelForCausalLM,
    ) -> None:
        self.kind, self.save, self.loader = kind, save, loader
        self.place, self.members = folder / "base", folder / "members"
        torch.manual_seed(5)
        kind.make().save_pretrained(self.place)
        self.merged = [self._train(i) for i in range(3)]

    def _train(self, seed: int) -> dict[str, Tensor]:
        model = self.wrapped()
        change(model, seed)
        self.save(model, self.members / f"checkpoint-{seed}")
        merged = state(model.merge_and_unload())
        if self.kind is KINDS["tied, targeted and kept equal"]:
            # PEFT 0.21 adds the change of a tied weight once for each of its names when it
            # merges; what it trains and computes has it once.
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                before = self.base().state_dict()[name]
                merged[name] = before + (merged[name] - before) / 2
        return merged

    def wrapped(self) -> Any:
        torch.manual_seed(6)
        options = {"task_type": "CAUSAL_LM", "r": 2, **self.kind.options}
        return peft.get_peft_model(self.base(), peft.LoraConfig(**options))

    def base(self) -> PreTrainedModel:
        return self.kind.prepare(self.loader.from_pretrained(self.place)).eval()

    def wanted(self, values: tuple[float, ...]) -> dict[str, Tensor]:
        pairs = list(zip(values, self.merged, strict=True))
        return {n: sum(v * m[n].double() for v, m in pairs) for n in self.merged[0]}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_what_peft_saves_by_default_is_averaged_exactly(name: str, tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS[name])
    pool = MemberPool.open(saved.members)  # the base is the one that they name
    average = plan(pool, pool.adapters.base.model)
    model = average.model
    for point in (W, FusionWeights((0.0, 1.0, 0.0)), Combination((0.7, -0.3, 0.6)), W):
        average.into_model(point)
        close(state(model), saved.wanted(point.values))
    streamed = StreamingAverage(MemberPool.open(saved.members), None).tensors(W)
    wanted = saved.wanted(W.values)
    close(streamed, {n: wanted[n] for n in streamed})

    out = export(average, W, pool, tmp_path / "fused")
    loaded, info = type(model).from_pretrained(out, output_loading_info=True)
    assert not {*info["missing_keys"], *info["unexpected_keys"]}
    close(state(loaded), saved.wanted(W.values))

    out = export(average, W, pool, tmp_path / "adapter", form=ExportForm.parse("adapter"))
    again = peft.PeftModel.from_pretrained(saved.base(), out).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert inspect(saved.members, own_model=True).problems == ()


@pytest.mark.parametrize("name", ["experts", "experts, in x out", "single rows, tied"])
def test_gradients_follow_every_kind(name: str, tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS[name])
    pool = MemberPool.open(saved.members)
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    (average.model(IDS).logits * torch.linspace(-1, 1, 31)).sum().backward()
    gradients = {n: p.grad for n, p in average.model.named_parameters() if p.grad is not None}
    wanted = [
        sum(float((g.double() * merged[n].double()).sum()) for n, g in gradients.items())
        for merged in saved.merged
    ]
    assert average.gradient_products() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_factors_of_experts_apart_and_cut(tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS["experts"])
    pool = MemberPool.open(saved.members)
    exact, apart = for_files(pool), for_files(pool, apart=True)
    name = "model.layers.0.mlp.experts.down_proj"
    low = [pool.adapters.low(i, name) for i in range(3)]
    left, right = (
        sum(w * x for w, x in zip(W.values, side, strict=True))
        for side in ([part.left for part in low], [part.right for part in low])
    )
    wanted = saved.base().state_dict()[name] + left @ right
    torch.testing.assert_close(apart.tensors(W)[name], wanted)
    out = export(exact, W, pool, tmp_path / "cut", form=ExportForm.parse("adapter-svd:3"))
    record = json.loads((out / "fusion.json").read_text())["adapter"]
    model = peft.PeftModel.from_pretrained(saved.base(), out).merge_and_unload()
    start, best = saved.base().state_dict(), saved.wanted(W.values)
    lost = model.state_dict()[name].double() - best[name]
    error = lost.norm() / (best[name] - start[name].double()).norm()
    assert record["rank"] == 3
    assert record["relative_error_of_modules"][name] == pytest.approx(float(error), rel=1e-3)


def test_mergekit_cannot_lay_these_adapters(tmp_path: Path) -> None:
    for name in ("experts", "single rows", "added tokens"):
        pool = MemberPool.open(Saved(tmp_path / name, KINDS[name]).members)
        with pytest.raises(StageError, match="mergekit lays adapters on"):
            check_can_be_laid(pool.adapters)


def fused_alike(saved: Saved, **options: Any) -> MemberPool:
    pool = MemberPool.open(saved.members, **options)
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    close(state(average.model), saved.wanted(W.values))
    return pool


def whole_state(model: Any, place: Path) -> None:
    """As accelerate's save_state writes it, with the configuration beside it."""
    place.mkdir(parents=True)
    for parameter in model.parameters():  # PEFT's tied factors are transposed views
        parameter.data = parameter.data.contiguous()
    save_model(model, str(place / "model.safetensors"))
    model.peft_config["default"].save_pretrained(place)


def pickled_state(model: Any, place: Path) -> None:
    place.mkdir(parents=True)
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    model.peft_config["default"].save_pretrained(place)


WHOLE = [
    "head and embedding",
    "added tokens, tied",
    "added tokens, saved",
    "tied, saved and kept equal",
    "tied, targeted and kept equal",
    "single rows, tied",
    "single rows, added",
    "experts",
]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("save", [whole_state, pickled_state])
def test_the_whole_state_of_a_peft_model_is_its_adapter_on_its_base(
    name: str, save: Callable[[Any, Path], object], tmp_path: Path
) -> None:
    saved = Saved(tmp_path, KINDS[name], save)
    pool = fused_alike(saved, allow_pickle=True)
    average = plan(pool, pool.adapters.base.model)
    out = export(average, W, pool, tmp_path / "fused")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True
    )
    assert not {*info["missing_keys"], *info["unexpected_keys"]}
    close(state(loaded), saved.wanted(W.values))
    # In an adapter stands what the base lacks, and no copy of all of it.
    out = export(average, W, pool, tmp_path / "adapter", form=ExportForm.parse("adapter"))
    written = load_file(out / "adapter_model.safetensors")
    assert not any("input_layernorm" in key for key in written)
    again = peft.PeftModel.from_pretrained(saved.base(), out).eval()
    average.into_model(W)
    with torch.no_grad():
        logits = average.model(IDS).logits
        torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_a_whole_state_without_its_configuration_is_refused(tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS["added tokens"], whole_state)
    for file in saved.members.glob("*/adapter_config.json"):
        file.unlink()
    with pytest.raises(
        MemberError, match=r"tensors of a PEFT model, and .*checkpoint-0 has no"
    ):
        MemberPool.open(saved.members)
    result = CliRunner().invoke(app, ["members", str(saved.members)])
    assert result.exit_code == 2
    assert "adapter_config.json" in result.output


def renamed(rename: Callable[[str], str]) -> Callable[[Any, Path], None]:
    def save(model: Any, place: Path) -> None:
        model.save_pretrained(place)
        file = place / "adapter_model.safetensors"
        save_file({rename(key): value for key, value in load_file(file).items()}, file)

    return save


def named(key: str) -> str:
    """As in a state dict: with the adapter's name."""
    for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
        key = key.replace(f".{part}", f".{part}.default")
    return key


@pytest.mark.parametrize(
    "rename",
    [
        named,
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace("lm_head.weight", "lm_head.modules_to_save.weight"),
        lambda key: named(key).replace(
            "lm_head.weight", "lm_head.modules_to_save.default.weight"
        ),
    ],
)
def test_keys_as_other_programs_write_them(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    options = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    fused_alike(Saved(tmp_path, Kind(llama, options), renamed(rename)))


def test_names_of_an_older_transformers_are_found(tmp_path: Path) -> None:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 4, "patch_size": 2}
    text = {**SMALL, "model_type": "llama"}
    config = LlavaConfig(
        text_config=text, vision_config={**vision, "model_type": "clip_vision_model"}
    )

    def old(key: str) -> str:
        new = "base_model.model.model.language_model."
        key = key.replace(new, "base_model.model.language_model.model.")
        return key.replace(
            "base_model.model.lm_head", "base_model.model.language_model.lm_head"
        )

    saves = {"as today": lambda model, place: model.save_pretrained(place), "old": renamed(old)}
    options = {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["norm"]}
    kind = Kind(lambda: LlavaForConditionalGeneration(config), options)
    for name, save in saves.items():
        saved = Saved(tmp_path / name, kind, save, LlavaForConditionalGeneration)
        pool = MemberPool.open(saved.members, base=saved.base)
        average = plan(pool, pool.adapters.base.model)
        average.into_model(W)
        close(state(average.model), saved.wanted(W.values))


def test_experts_of_an_older_transformers_are_refused(tmp_path: Path) -> None:
    def old(key: str) -> str:
        return key.replace("q_proj", "XX").replace("self_attn.XX", "mlp.experts.0.up_proj")

    saved = Saved(tmp_path, Kind(qwen, {"target_modules": Q}), renamed(old))
    with pytest.raises(MemberError, match=r"is a part of model.layers.0.mlp.experts.gate_up"):
        _ = MemberPool.open(saved.members).tensors


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS["added tokens"], renamed(named))
    file = saved.members / "checkpoint-1" / "adapter_model.safetensors"
    tensors = load_file(file)
    factors = {k: v.clone() for k, v in tensors.items() if "lora_" in k}
    other = {k.replace(".default", ".other"): v for k, v in factors.items()}
    save_file({**tensors, **other}, file)
    with pytest.raises(MemberError, match="holds 2 adapters, default, other"):
        MemberPool.open(saved.members)


@pytest.mark.parametrize(
    "name",
    ["head and embedding", "added tokens", "added tokens, saved", "single rows", "experts"],
)
def test_members_of_the_collector_know_their_base(name: str, tmp_path: Path) -> None:
    def save(model: Any, place: Path) -> None:
        collector = MemberCollector(place.parent / "collected", members=1, total_steps=1)
        member = collector.step(model)
        assert member is not None
        member.rename(place)
        shutil.rmtree(place.parent / "collected")

    saved = Saved(tmp_path, KINDS[name], save)
    assert fused_alike(saved).members[0].base_digest
    base = transformers.AutoModelForCausalLM.from_pretrained(saved.place)
    with torch.no_grad():
        base.model.norm.weight[0] += 1e-3
    base.save_pretrained(saved.place)
    assert "has not the weights" in inspect(saved.members, own_model=True).problems[0]
    with pytest.raises(MemberError, match="has not the weights"):
        _ = MemberPool.open(saved.members).tensors


def encoder(num_labels: int = 3) -> BertForSequenceClassification:
    sizes = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=num_labels))


@pytest.fixture
def without_head(tmp_path: Path) -> Path:
    """Members of a LoRA without a task type: their head, drawn at random, is in no file."""
    encoder().bert.save_pretrained(tmp_path / "base")
    for i in range(3):
        model = classifier(tmp_path, seed=1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=2))
        change(adapted, i)
        adapted.save_pretrained(tmp_path / "members" / f"checkpoint-{i}")
    return tmp_path / "members"


def classifier(folder: Path, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return BertForSequenceClassification.from_pretrained(folder / "base", num_labels=3)


LOST = r"classifier.bias, classifier.weight of BertForSequenceClassification stand neither in"


def test_a_head_in_no_file_is_refused(without_head: Path) -> None:
    with pytest.raises(MemberError, match=LOST):
        _ = MemberPool.open(without_head).tensors
    assert "stand neither in" in inspect(without_head, own_model=True).problems[0]
    seeds = iter(range(9))
    drawing = MemberPool.open(
        without_head, base=lambda: classifier(without_head.parent, next(seeds))
    )
    with pytest.raises(MemberError, match=LOST):
        _ = drawing.tensors


def test_a_head_that_the_caller_brings_is_taken_and_said(
    without_head: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MemberPool.open(without_head, base=lambda: classifier(without_head.parent, 1))
    assert "classifier.weight" in pool.tensors
    assert "they are taken as the model that was given has them" in caplog.text


def test_a_head_in_no_file_is_collected_with_the_adapters(tmp_path: Path) -> None:
    encoder().bert.save_pretrained(tmp_path / "base")
    merged = []
    for i in range(3):
        config = peft.LoraConfig(target_modules=["query"], r=2)
        adapted = peft.get_peft_model(classifier(tmp_path, seed=1), config, adapter_name="mine")
        change(adapted, i)
        collector = MemberCollector(tmp_path / f"run-{i}", members=1, total_steps=1)
        member = collector.step(adapted)
        assert member is not None
        shutil.copytree(member, tmp_path / "members" / f"checkpoint-{i}")
        again = peft.PeftModel.from_pretrained(classifier(tmp_path, seed=2), member)
        merged.append(state(again.merge_and_unload()))
    pool = MemberPool.open(tmp_path / "members")
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    pairs = list(zip(W.values, merged, strict=True))
    wanted = {n: sum(v * m[n].double() for v, m in pairs) for n in merged[0]}
    close(state(average.model), wanted)


def test_what_does_not_fit_is_said_before_the_fusion(tmp_path: Path) -> None:
    saved = Saved(tmp_path, KINDS["experts"])
    experts = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    other = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts, head_dim=4))
    other.save_pretrained(saved.place)
    result = CliRunner().invoke(app, ["members", str(saved.members)])
    assert result.exit_code == 2
    assert "does not fit its base model" in " ".join(result.output.split())
    shutil.rmtree(saved.place)
    result = CliRunner().invoke(app, ["members", str(saved.members)])
    assert result.exit_code == 0
    assert "Not checked against their base model" in result.output


def test_embeddings_that_were_resized_and_not_saved_are_refused(tmp_path: Path) -> None:
    saved = Saved(
        tmp_path,
        KINDS["added tokens, targeted"],
        lambda model, place: model.save_pretrained(place, save_embedding_layers=False),
    )
    with pytest.raises(MemberError, match="training resized the embeddings, give the resized"):
        _ = MemberPool.open(saved.members).tensors
    pool = MemberPool.open(saved.members, base=saved.base)
    plan(pool, pool.adapters.base.model).into_model(W)
    close(state(pool.adapters.base.model), saved.wanted(W.values))
