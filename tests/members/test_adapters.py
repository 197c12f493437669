from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from fusetune.errors import MemberError, StageError
from fusetune.members.adapter_average import AdapterAverage
from fusetune.members.adapter_export import ExportForm, apart_distance
from fusetune.members.average import StreamingAverage, for_files, plan
from fusetune.members.base import base_sha256
from fusetune.members.export import export
from fusetune.members.gram import gram
from fusetune.members.layers import LayerWeights, layer_groups
from fusetune.members.low_rank import squared_distance, squared_norm, truncate
from fusetune.members.points import Combination, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

W = FusionWeights((0.5, 0.2, 0.3))
IDS = torch.arange(1, 9).view(2, 4)


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=31, intermediate_size=12, num_labels=3, **sizes)
    return BertForSequenceClassification(config)


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def llama_with_head() -> PreTrainedModel:
    config = llama().config
    config.pad_token_id, config.num_labels = 0, 3
    return LlamaForSequenceClassification(config)


def gpt2() -> PreTrainedModel:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_positions=10, n_embd=8, n_layer=2, n_head=2, **ends)
    )


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "alpha": (bert, {"r": 3, "lora_alpha": 7, "target_modules": ["query", "dense"]}),
    "rslora": (
        bert,
        {"r": 4, "lora_alpha": 5, "use_rslora": True, "target_modules": ["query", "value"]},
    ),
    "patterns": (
        llama,
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"down_proj": 9, "q_proj": 2},
        },
    ),
    "saved": (llama, {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["norm"]}),
    "head": (llama_with_head, {"r": 2, "lora_alpha": 5, "target_modules": "all-linear"}),
    "conv1d": (gpt2, {"r": 2, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"]}),
    "embedding": (bert, {"r": 2, "lora_alpha": 3, "target_modules": ["word_embeddings"]}),
    "biases": (bert, {"r": 2, "target_modules": ["query"], "bias": "all"}),
    "lora_bias": (
        bert,
        {"r": 2, "lora_alpha": 6, "target_modules": ["key"], "lora_bias": True},
    ),
    "dora": (
        bert,
        {"r": 2, "lora_alpha": 6, "target_modules": ["query", "dense"], "use_dora": True},
    ),
    "dora conv1d": (gpt2, {"r": 2, "target_modules": ["c_attn"], "use_dora": True}),
}


def randomise(model: nn.Module, seed: int) -> None:
    """Give what trains values of a size that a mistake would show in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                shift = 1.5 if "magnitude" in name else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(shift + 0.3 * noise)


def task_type(model: PreTrainedModel) -> str:
    return "SEQ_CLS" if "Classification" in type(model).__name__ else "CAUSAL_LM"


class Family:
    """Adapters on one base, saved by PEFT; and their merged models, made by PEFT."""

    def __init__(
        self, folder: Path, make: Callable[[], PreTrainedModel], *options: dict[str, Any]
    ) -> None:
        torch.manual_seed(5)
        self.folder, self.base = folder, folder / "base"
        make().save_pretrained(self.base)
        self.options = options * 3 if len(options) == 1 else options
        self.merged: list[dict[str, Tensor]] = []
        for i, option in enumerate(self.options):
            torch.manual_seed(5)
            model = make()
            model = type(model).from_pretrained(self.base)
            config = peft.LoraConfig(task_type=task_type(model), **option)
            adapted = peft.get_peft_model(model, config)
            randomise(adapted, seed=i)
            adapted.save_pretrained(
                folder / "members" / f"step-{i}", save_embedding_layers=False
            )
            self.merged.append(state(adapted.merge_and_unload()))

    def pool(self) -> MemberPool:
        return MemberPool.open(self.folder / "members", base=self.load)

    def load(self) -> PreTrainedModel:
        config = json.loads((self.base / "config.json").read_text())
        make = getattr(transformers, config["architectures"][0])
        return make.from_pretrained(self.base).eval()

    def wanted(self, values: tuple[float, ...]) -> dict[str, Tensor]:
        first = self.merged[0]
        pairs = list(zip(values, self.merged, strict=True))
        return {n: sum(v * m[n].double() for v, m in pairs) for n in first}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


@pytest.fixture
def family(tmp_path: Path) -> Callable[..., Family]:
    def make(case: str) -> Family:
        build, options = CASES[case]
        return Family(tmp_path, build, options)

    return make


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-12))


@pytest.mark.parametrize("case", CASES)
def test_average_is_that_of_the_merged_models(
    case: str, family: Callable[..., Family], tmp_path: Path
) -> None:
    adapters = family(case)
    pool = adapters.pool()
    model = pool.adapters.base.model
    average = plan(pool, model)
    assert isinstance(average, AdapterAverage)
    points = (W, FusionWeights((0.0, 1.0, 0.0)), Combination((0.7, -0.4, 0.5)), W)
    for point in points:
        average.into_model(point)
        wanted = adapters.wanted(point.values)
        found = state(model)
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            assert relative(tensor, wanted[name]) < 1e-5, name
    # Merged member by member and read from there, as for whole models: another way.
    streamed = StreamingAverage(adapters.pool(), None).tensors(W)
    for name, tensor in average.tensors(W).items():
        # Not to the bit: what a product rounds to can depend on where its matrices lie.
        assert relative(tensor, found[name].double()) < 1e-6
        assert relative(tensor, streamed[name].double()) < 1e-5

    # The exported model is the evaluated one, up to that; tied weights stand there once.
    out = export(average, W, pool, tmp_path / "fused")
    loaded = type(model).from_pretrained(out).eval()
    assert all(relative(t, found[n].double()) < 1e-6 for n, t in state(loaded).items())
    if isinstance(model, LlamaForCausalLM):
        assert "lm_head.weight" not in load_file(out / "model.safetensors")
        assert (out / "generation_config.json").is_file()
        assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()

    # One adapter by concatenation, loaded by PEFT, is the same model.
    out = export(average, W, pool, tmp_path / "adapter", form=ExportForm.parse("adapter"))
    again = peft.PeftModel.from_pretrained(adapters.load(), out).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["patterns", "saved", "lora_bias", "dora"])
def test_weights_by_layer_average_each_group_by_itself(
    family: Callable[..., Family], case: str, tmp_path: Path
) -> None:
    one = family(case)
    pool = one.pool()
    weights = [(0.2, 0.3, 0.5), (1.0, 0.0, 0.0), (0.0, 0.6, 0.4), (0.0, 1.0, 0.0), W.values]
    point = LayerWeights(tuple(FusionWeights(w) for w in weights))
    average = plan(pool, pool.adapters.base.model)
    assert isinstance(average, AdapterAverage)
    average.into_model(point)
    found = state(average.model)
    groups = layer_groups(found)
    wanted = [one.wanted(w) for w in weights]
    for name, tensor in found.items():
        assert relative(tensor, wanted[groups[name]][name]) < 1e-5, name
    tensors = average.tensors(point)
    assert all(torch.equal(tensors[n], t) for n, t in found.items() if n in tensors)
    assert average.bytes_read(point) < average.bytes_read(W)
    folder = export(average, point, pool, tmp_path / "one", form=ExportForm.parse("adapter"))
    loaded = peft.PeftModel.from_pretrained(one.load(), folder).merge_and_unload()
    for name, tensor in state(loaded).items():
        assert relative(tensor, found[name]) < 1e-5, name


def test_gradients_and_inner_products_of_merged_members(family: Callable[..., Family]) -> None:
    for case in ("dora", "conv1d", "biases"):
        adapters = family(case)
        pool = adapters.pool()
        model = pool.adapters.base.model
        average = plan(pool, model)
        average.into_model(W)
        (
            model(IDS).logits * torch.linspace(-1, 1, 3 if case != "conv1d" else 31)
        ).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        wanted = [
            sum(float((g.double() * merged[n].double()).sum()) for n, g in gradients.items())
            for merged in adapters.merged
        ]
        assert average.gradient_products() == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        names = [n for n, _ in model.named_parameters()]
        products = gram(adapters.pool())
        flat = [torch.cat([m[n].double().view(-1) for n in names]) for m in adapters.merged]
        assert products[0, 1] == pytest.approx(float(flat[0] @ flat[1]), rel=1e-5)
        shutil.rmtree(adapters.folder / "members")


def test_other_ranks_targets_and_scalings_are_averaged(tmp_path: Path) -> None:
    options = (
        {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"]},
        {"r": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        {"r": 1, "target_modules": ["v_proj"]},
    )
    adapters = Family(tmp_path, llama, *options)
    pool = adapters.pool()
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    for name, wanted in adapters.wanted(W.values).items():
        assert relative(state(average.model)[name], wanted) < 1e-5
    out = export(average, W, pool, tmp_path / "one", form=ExportForm(adapter=True))
    again = peft.PeftModel.from_pretrained(adapters.load(), out).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, average.model(IDS).logits)
    assert apart_distance(average, W) is None
    with pytest.raises(MemberError, match="other targets or ranks"):
        AdapterAverage(pool, None, apart=True)


def test_a_model_of_its_own_leaves_the_base_as_it_is(family: Callable[..., Family]) -> None:
    pool = family("alpha").pool()
    model = pool.adapters.base.model
    average = plan(pool, model)
    average.into_model(W)
    before = state(model)
    zeros = {
        n: torch.zeros(s.shape) for n, s in pool.tensors.items() if s.dtype.is_floating_point
    }
    average.into_model(OwnModel.of(zeros))
    assert all(bool((p == 0).all()) for p in model.parameters())
    average.into_model(W)
    assert all(torch.equal(t, before[n]) for n, t in state(model).items())


def test_sixteen_bits_are_rounded_as_the_file_will_be(
    family: Callable[..., Family], tmp_path: Path
) -> None:
    adapters = family("alpha")
    half = adapters.load().to(torch.bfloat16)
    pool = MemberPool.open(adapters.folder / "members", base=half)
    average = plan(pool, half)
    average.into_model(W)
    out = export(average, W, pool, tmp_path / "half")
    written = load_file(out / "model.safetensors")
    wider = adapters.load()  # evaluated in float32: with the rounded values all the same
    plan(pool, wider).into_model(W)
    assert all(torch.equal(t.float(), state(wider)[n]) for n, t in written.items())
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    assert all(torch.equal(t, state(half)[n]) for n, t in written.items())


def test_averaging_a_and_b_apart(family: Callable[..., Family], tmp_path: Path) -> None:
    adapters = family("alpha")
    pool = adapters.pool()
    exact, apart = for_files(pool), for_files(pool, apart=True)
    name = "bert.encoder.layer.0.attention.self.query"
    base = adapters.load().state_dict()[f"{name}.weight"].double()
    files = [load_file(m.path / "adapter_model.safetensors") for m in pool.members]
    factors = {
        x: sum(
            w * f[f"base_model.model.{name}.lora_{x}.weight"].double()
            for w, f in zip(W.values, files, strict=True)
        )
        for x in "AB"
    }
    wanted = base + 7 / 3 * factors["B"] @ factors["A"]
    tensors, others = apart.tensors(W), exact.tensors(W)
    assert relative(tensors[f"{name}.weight"], wanted) < 1e-5
    # The distance, from dense matrices.
    start = adapters.load().state_dict()
    names = exact.stacks
    above = sum(float((tensors[n] - others[n]).double().square().sum()) for n in names)
    below = sum(float((others[n] - start[n]).double().square().sum()) for n in names)
    assert apart_distance(exact, W) == pytest.approx((above / below) ** 0.5, rel=1e-3)
    assert apart_distance(exact, FusionWeights.one_hot(1, 3)) == pytest.approx(0.0, abs=1e-6)
    evaluated = plan(pool, pool.adapters.base.model, apart=True)
    evaluated.into_model(W)
    assert torch.equal(state(evaluated.model)[f"{name}.weight"], tensors[f"{name}.weight"])
    assert not evaluated.linear
    out = export(apart, W, pool, tmp_path / "apart", form=ExportForm(adapter=True))
    assert json.loads((out / "fusion.json").read_text())["adapter"]["rank"] == 3


def test_svd_cuts_off_the_least_and_says_how_much(
    family: Callable[..., Family], tmp_path: Path
) -> None:
    pool = family("patterns").pool()
    average = for_files(pool)
    out = export(average, W, pool, tmp_path / "cut", form=ExportForm.parse("adapter-svd:2"))
    record = json.loads((out / "fusion.json").read_text())["adapter"]
    tensors = load_file(out / "adapter_model.safetensors")
    lost = total = 0.0
    for name, stack in average.stacks.items():
        module = average.source.weights[name]
        left, right = stack.factors(average.vector(W, name))
        dense = (left @ right).double()
        values = torch.linalg.svdvals(dense)
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        error = float((dense - (b @ a).double()).norm())
        assert error == pytest.approx(float(values[2:].norm()), rel=1e-3, abs=1e-6)
        expected = error / float(dense.norm())
        assert record["relative_error_of_modules"][module] == pytest.approx(
            expected, rel=1e-3, abs=1e-6
        )
        lost, total = lost + error**2, total + float(dense.square().sum())
    assert 0.01 < record["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-3)


def test_norms_of_products_need_no_dense_matrix() -> None:
    a, b = torch.randn(7, 3), torch.randn(3, 5)
    c, d = torch.randn(7, 2), torch.randn(2, 5)
    assert squared_norm(a, b) == pytest.approx(float((a @ b).square().sum()), rel=1e-5)
    assert squared_distance((a, b), (c, d)) == pytest.approx(
        float((a @ b - c @ d).square().sum()), rel=1e-5
    )
    kept = truncate(a, b, 9)  # nothing to cut
    torch.testing.assert_close(kept.left @ kept.right, a @ b)
    assert kept.lost == 0.0


def change(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
        ({"trainable_token_indices": [1]}, "its file holds no single rows"),
        ({"base_model_name_or_path": "other/model"}, "their base models are other/model and"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_with_the_reason(
    values: dict[str, object], message: str, family: Callable[..., Family]
) -> None:
    adapters = family("alpha")
    change(adapters.folder / "members" / "step-1", **values)
    with pytest.raises(MemberError, match=message):
        adapters.pool()


def test_other_misfits(family: Callable[..., Family], tmp_path: Path) -> None:
    adapters = family("saved")
    step = adapters.folder / "members" / "step-1"
    file = step / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if "norm" not in n}
    save_file(tensors, file)
    with pytest.raises(MemberError, match="only one of them holds model"):
        adapters.pool()
    (step / "adapter_config.json").unlink()
    with pytest.raises(MemberError, match=r"no adapter_config.json"):
        adapters.pool()
    shutil.rmtree(step)
    adapters.load().save_pretrained(step)
    with pytest.raises(MemberError, match=r"is an adapter and .* a whole model"):
        adapters.pool()
    shutil.rmtree(step)
    wrong = MemberPool.open(adapters.folder / "members", base=gpt2())
    with pytest.raises(MemberError, match="does not fit its base model"):
        plan(wrong, wrong.adapters.base.model)
    tied = Family(tmp_path / "tied", llama, {"r": 2, "target_modules": ["embed_tokens"]}).pool()
    with pytest.raises(MemberError, match=r"shares with lm_head.weight"):
        plan(tied, tied.adapters.base.model)


def test_dora_is_not_cut_and_a_model_of_its_own_is_no_adapter(
    family: Callable[..., Family], tmp_path: Path
) -> None:
    pool = family("dora").pool()
    average = for_files(pool)
    for point, form in (
        (W, "adapter-svd:2"),
        (OwnModel.of(average.tensors(W)), "adapter"),
        (Combination((1.0, 1.0, 0.0)), "adapter"),
    ):
        with pytest.raises(StageError):
            export(average, point, pool, tmp_path / "no", form=ExportForm.parse(form))
    assert not (tmp_path / "no").exists()


def test_a_changed_base_is_found_by_its_digest(family: Callable[..., Family]) -> None:
    adapters = family("biases")
    _, options = CASES["biases"]
    plain = adapters.load()
    wrapped = peft.get_peft_model(
        adapters.load(), peft.LoraConfig(task_type="SEQ_CLS", **options)
    )
    randomise(wrapped, seed=3)
    replaced = adapters.pool().members[0].whole
    assert base_sha256(wrapped) == base_sha256(plain, replaced)
    with torch.no_grad():
        plain.bert.pooler.dense.weight[0, 0] += 1e-3
    assert base_sha256(wrapped) != base_sha256(plain, replaced)


def test_the_base_that_adapters_name_is_loaded(tmp_path: Path) -> None:
    adapters = Family(tmp_path, bert, CASES["alpha"][1])
    pool = MemberPool.open(tmp_path / "members")  # the head's size is in the adapter
    average = plan(pool, pool.adapters.base.model)
    average.into_model(W)
    for name, wanted in adapters.wanted(W.values).items():
        assert relative(state(average.model)[name], wanted) < 1e-5
