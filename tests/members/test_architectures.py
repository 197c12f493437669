from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from fusetune.errors import MemberError
from fusetune.members.average import Average, ResidentAverage, StreamingAverage
from fusetune.members.export import export
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

BERT = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}
LLAMA = BERT | {"num_key_value_heads": 1, "pad_token_id": 0}
GPT2 = {"vocab_size": 19, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
T5 = {"vocab_size": 19, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0}
DISTIL = {"vocab_size": 19, "dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2}
BART = {"vocab_size": 19, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8}
BART |= {"decoder_ffn_dim": 8, "max_position_embeddings": 8}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-tied": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
    "deberta-v2": lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**BERT)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)),
    "gpt2-tied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "t5": lambda: T5ForSequenceClassification(T5Config(**T5)),
    "t5-tied": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "bart": lambda: BartForSequenceClassification(BartConfig(**BART)),
}
WEIGHTS = FusionWeights((0.5, 0.2, 0.3))


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_average_and_export_round_trip(
    build: Callable[[], PreTrainedModel],
    form: Callable[..., Average],
    save_members: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pool = MemberPool.open(save_members(build))
    model = build()
    average = form(pool, model)
    average.into_model(WEIGHTS)
    export(average, WEIGHTS, pool, tmp_path / "fused")
    loaded, info = type(model).from_pretrained(tmp_path / "fused", output_loading_info=True)
    assert not any(info.values()), info
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
@pytest.mark.parametrize("name", ["bert-tied", "llama-tied", "gpt2-tied", "t5-tied"])
def test_ties_hold(
    name: str, form: Callable[..., Average], save_members: Callable[..., Path]
) -> None:
    pool = MemberPool.open(save_members(MODELS[name]))
    model = MODELS[name]()
    form(pool, model).into_model(FusionWeights.one_hot(1, 3))
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    stored = next(n for n, p in model.named_parameters() if p is embedding)
    assert torch.equal(embedding, pool.load_tensor(1, stored))


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
@pytest.mark.parametrize("name", ["bert-tied", "llama-tied", "gpt2-tied", "t5-tied"])
def test_tied_tensors_count_once_in_gradient_products(
    name: str, form: Callable[..., Average], save_members: Callable[..., Path]
) -> None:
    pool = MemberPool.open(save_members(MODELS[name]))
    model = MODELS[name]().eval()
    average = form(pool, model)
    average.into_model(WEIGHTS)
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad is not None
    gradients = [p.grad for p in model.parameters()]
    expected = []
    for member in pool.members:
        own = type(model).from_pretrained(member.path).parameters()  # a tied one once
        pairs = zip(gradients, own, strict=True)
        expected.append(sum(float((g * p).double().sum()) for g, p in pairs if g is not None))
    assert average.gradient_products() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_both_names_of_a_tied_tensor_may_be_stored_if_equal(
    save_members: Callable[..., Path], edit: Callable[..., None]
) -> None:
    build = MODELS["gpt2-tied"]
    folder = save_members(build)
    for member in folder.iterdir():
        edit(
            member, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()})
        )
    model = build()
    average = ResidentAverage(MemberPool.open(folder), model)
    average.into_model(WEIGHTS)
    assert model.lm_head.weight is model.transformer.wte.weight
    edit(folder / "step-20", lambda t: t["lm_head.weight"][0].add_(1.0))
    with pytest.raises(
        MemberError, match=r"are one tensor in the model, but differ in .*step-20"
    ):
        ResidentAverage(MemberPool.open(folder), build())


def test_an_untied_model_needs_both_tensors(save_members: Callable[..., Path]) -> None:
    pool = MemberPool.open(save_members(MODELS["llama-tied"]))
    untied = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False))
    with pytest.raises(
        MemberError, match=r"1 of the model not in the members \(lm_head\.weight"
    ):
        ResidentAverage(pool, untied)


@pytest.mark.parametrize("form", [ResidentAverage, StreamingAverage])
@pytest.mark.parametrize("original", [True, False], ids=["saved-layout", "own-layout"])
def test_gradient_products_of_converted_tensors(
    original: bool, form: Callable[..., Average], save_members: Callable[..., Path]
) -> None:
    def build() -> PreTrainedModel:
        return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2))

    pool = MemberPool.open(save_members(build, save_original_format=original))
    model = build().eval()
    average = form(pool, model)
    average.into_model(WEIGHTS)
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any("experts" in name for name in gradients)
    expected = []
    for member in pool.members:
        own = type(model).from_pretrained(member.path).state_dict()
        expected.append(sum(float((g * own[n]).double().sum()) for n, g in gradients.items()))
    assert average.gradient_products() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_conversion_that_lacks_an_expert_is_refused(
    save_members: Callable[..., Path], edit: Callable[..., None]
) -> None:
    def build() -> PreTrainedModel:
        return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2))

    folder = save_members(build)
    for member in folder.iterdir():
        edit(member, lambda t: [t.pop(n) for n in list(t) if "experts.1." in n and ".w2" in n])
    with pytest.raises(
        MemberError, match=r"experts\.down_proj \(\(2, .*\) in the model, \(1, "
    ):
        ResidentAverage(MemberPool.open(folder), build())


def test_a_round_that_broke_off_leaves_nothing_to_the_next(
    save_members: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> PreTrainedModel:
        return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2))

    pool = MemberPool.open(save_members(build))
    model, other = build(), build()
    average = StreamingAverage(pool, model)
    own = average.tensors(FusionWeights.one_hot(2, 3))
    experts = {n: t for n, t in own.items() if "experts" in n}
    for name in list(experts)[1:]:  # all but one, as if the process had been stopped there
        average.binding.put(name, experts[name])  # type: ignore[union-attr]
    average.into_model(WEIGHTS)
    StreamingAverage(pool, other).into_model(WEIGHTS)
    expected = other.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


def test_nan_does_not_come_in_through_a_tie(
    save_members: Callable[..., Path], edit: Callable[..., None]
) -> None:
    folder = save_members(MODELS["llama-tied"])
    edit(folder / "step-30", lambda t: t["model.embed_tokens.weight"].fill_(math.nan))
    model = MODELS["llama-tied"]()
    ResidentAverage(MemberPool.open(folder), model).into_model(FusionWeights((0.5, 0.5, 0.0)))
    assert bool(model.lm_head.weight.isfinite().all())
