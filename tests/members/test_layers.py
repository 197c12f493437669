"""One w per group of layers: the groups by name, and averages with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from fusetune.members import average as module
from fusetune.members import streaming
from fusetune.members.average import Average, ResidentAverage, StreamingAverage
from fusetune.members.export import FUSION, export
from fusetune.members.layers import LayerWeights, group_names, layer_groups
from fusetune.members.mixing import groups_of
from fusetune.members.points import FusionWeights, Point, from_json, key, to_json
from fusetune.members.pool import MemberPool

Edit = Callable[[Path, Callable[[dict[str, Tensor]], None]], None]

W = tuple(
    FusionWeights(w)
    for w in (
        (0.2, 0.3, 0.5),
        (1.0, 0.0, 0.0),
        (0.0, 0.6, 0.4),
        (0.3, 0.4, 0.3),
        (0.0, 0.0, 1.0),
    )
)
DIFFERENT = LayerWeights(W)


@pytest.fixture(params=[ResidentAverage, StreamingAverage])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Average]:
    """With tiles so narrow that groups of layers begin and end inside of them."""
    monkeypatch.setattr(module, "TILE", 64)
    monkeypatch.setattr(streaming, "TILE", 64)
    return request.param


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {n: t.detach().contiguous().numpy().tobytes() for n, t in tensors.items()}


def in_model(average: Average, point: Point) -> dict[str, Tensor]:
    average.into_model(point)
    return {n: t.detach().clone() for n, t in average.model.state_dict().items()}


BERT = {
    "bert.embeddings.word_embeddings.weight": 0,
    "bert.encoder.layer.1.attention.self.query.weight": 1,
    "bert.encoder.layer.2.output.dense.bias": 2,
    "bert.encoder.layer.5.output.dense.bias": 3,
    "bert.pooler.dense.weight": 4,
    "classifier.bias": 4,
}
ROBERTA = {name.replace("bert.", "roberta."): group for name, group in BERT.items()}
DISTILBERT = {
    "distilbert.embeddings.LayerNorm.weight": 0,
    "distilbert.transformer.layer.0.ffn.lin1.weight": 1,
    "distilbert.transformer.layer.5.ffn.lin1.weight": 3,
    "pre_classifier.weight": 4,
}
DEBERTA = {
    "deberta.encoder.rel_embeddings.weight": 0,
    "deberta.encoder.LayerNorm.weight": 0,
    "deberta.encoder.layer.0.output.LayerNorm.weight": 1,
    "pooler.dense.weight": 4,
}
T5 = {
    "shared.weight": 0,
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 1,
    "encoder.block.2.layer.1.DenseReluDense.wi.weight": 2,
    "encoder.final_layer_norm.weight": 2,
    "decoder.block.0.layer.2.DenseReluDense.wi.weight": 2,
    "decoder.block.2.layer.1.EncDecAttention.q.weight": 3,
    "decoder.final_layer_norm.weight": 4,
    "lm_head.weight": 4,
}
BART = {
    "model.encoder.layernorm_embedding.weight": 0,
    "model.encoder.layers.0.fc1.weight": 1,
    "model.decoder.layers.2.fc1.weight": 3,
    "classification_head.out_proj.weight": 4,
}
LLAMA = {
    "model.embed_tokens.weight": 0,
    "model.layers.2.self_attn.q_proj.weight": 1,
    "model.layers.4.mlp.experts.7.up_proj.weight": 2,
    "model.layers.10.mlp.up_proj.weight": 3,
    "model.norm.weight": 4,
    "lm_head.weight": 4,
}
GPT2 = {
    "transformer.wte.weight": 0,
    "transformer.wpe.weight": 0,
    "transformer.h.0.attn.c_attn.weight": 1,
    "transformer.h.5.mlp.c_fc.weight": 3,
    "transformer.ln_f.weight": 4,
    "score.weight": 4,
}


@pytest.mark.parametrize(
    ("named", "stacks", "layers"),
    [
        (BERT, ["bert.encoder.layer"], 6),
        (ROBERTA, ["roberta.encoder.layer"], 6),
        (DISTILBERT, ["distilbert.transformer.layer"], 6),
        (DEBERTA, ["deberta.encoder.layer"], 6),
        (T5, ["encoder.block", "decoder.block"], 3),
        (BART, ["model.encoder.layers", "model.decoder.layers"], 3),
        (LLAMA, ["model.layers"], 11),
        (GPT2, ["transformer.h"], 6),
    ],
    ids=["bert", "roberta", "distilbert", "deberta", "t5", "bart", "llama", "gpt2"],
)
def test_the_group_follows_from_the_name(
    named: dict[str, int], stacks: list[str], layers: int
) -> None:
    others = [f"{stack}.{i}.norm.weight" for stack in stacks for i in range(layers)]
    found = layer_groups([*named, *others])
    assert {name: found[name] for name in named} == named


def test_thirds_are_as_equal_as_can_be() -> None:
    found = layer_groups([f"model.layers.{i}.x" for i in range(7)], parts=3)
    assert [found[f"model.layers.{i}.x"] for i in range(7)] == [1, 1, 1, 2, 2, 3, 3]
    assert group_names(2) == ("embeddings", "layers 1/2", "layers 2/2", "head")
    assert layer_groups(["conv1.weight", "fc.weight"]) == {"conv1.weight": 4, "fc.weight": 4}


def test_weights_by_layer_are_checked() -> None:
    w = FusionWeights((0.5, 0.5))
    with pytest.raises(ValueError, match="embeddings"):
        LayerWeights((w, w))
    with pytest.raises(ValueError, match="every member"):
        LayerWeights((w, w, FusionWeights((1.0,))))


def test_each_group_has_its_own_average(
    form: Callable[..., Average], bert_members: Path, bert: PreTrainedModel
) -> None:
    pool = MemberPool.open(bert_members)
    average = form(pool, bert)
    found = in_model(average, DIFFERENT)
    files = [load_file(m.path / "model.safetensors") for m in pool.members]
    groups = layer_groups(found)
    assert set(groups.values()) == {0, 1, 2, 4}  # of two layers, the last third is empty
    for name, tensor in found.items():
        w = W[groups[name]].values
        expected = sum(v * f[name].double() for v, f in zip(w, files, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    # The bits are those of an ordinary average with that group's w.
    plain = [bits(in_model(average, w)) for w in W]
    assert bits(found) == {n: plain[groups[n]][n] for n in found}
    assert bits(average.tensors(DIFFERENT)) == bits(found)


def test_one_w_for_all_groups_is_the_ordinary_average(
    form: Callable[..., Average], bert_members: Path, bert: PreTrainedModel
) -> None:
    average = form(MemberPool.open(bert_members), bert)
    same = LayerWeights((W[3],) * 5)
    assert bits(in_model(average, same)) == bits(in_model(average, W[3]))
    assert key(same) == key(W[3])
    assert key(DIFFERENT) != key(LayerWeights(W[::-1]))


def test_half_precision_is_rounded_as_in_the_ordinary_average(
    save_members: Callable[..., Path], bert: PreTrainedModel
) -> None:
    pool = MemberPool.open(save_members(dtype=torch.bfloat16))
    average = ResidentAverage(pool, bert)
    found = in_model(average, DIFFERENT)
    groups = layer_groups(found)
    for name, tensor in found.items():
        assert torch.equal(tensor, in_model(average, W[groups[name]])[name]), name


def test_only_what_has_a_weight_is_read(
    form: Callable[..., Average], copied_members: Path, bert: PreTrainedModel, edit: Edit
) -> None:
    """Of the first member the head is useless, and has no weight there."""
    edit(copied_members / "step-10", lambda t: t["classifier.weight"].fill_(torch.nan))
    pool = MemberPool.open(copied_members)
    average = form(pool, bert)
    assert all(bool(t.isfinite().all()) for t in in_model(average, DIFFERENT).values())
    groups = layer_groups(pool.tensors)
    used = [sum(v > 0.0 for v in w.values) for w in W]
    expected = sum(4 * used[groups[n]] * info.numel for n, info in pool.tensors.items())
    assert average.bytes_read(DIFFERENT) == expected


def test_what_is_tied_to_the_embeddings_belongs_to_them(
    raw_members: Callable[..., Path],
) -> None:
    def state(tied: bool) -> dict[str, Tensor]:
        table = torch.randn(6, 4)
        head = table.clone() if tied else torch.randn(6, 4)
        return {"model.embed_tokens.weight": table, "lm_head.weight": head}

    pool = MemberPool.open(raw_members([state(True), state(True)]))
    assert set(groups_of(pool).values()) == {0}
    (folder,) = {m.path.parent for m in pool.members}
    half = folder.with_name("half")
    folder.rename(half)
    pool = MemberPool.open(raw_members([state(True), state(False)]))
    assert groups_of(pool)["lm_head.weight"] == 4


def test_json_and_export_name_the_groups(
    bert_members: Path, bert: PreTrainedModel, tmp_path: Path
) -> None:
    data = json.loads(json.dumps(to_json(DIFFERENT)))
    assert data["layers"][1] == {"group": "layers 1/3", "weights": [1.0, 0.0, 0.0]}
    assert from_json(data) == DIFFERENT
    pool = MemberPool.open(bert_members)
    average = ResidentAverage(pool, bert)
    folder = export(average, DIFFERENT, pool, tmp_path / "fused")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert bits(dict(loaded.state_dict())) == bits(average.tensors(DIFFERENT))
    record = json.loads((folder / FUSION).read_text())
    assert record["layers"] == data["layers"]
    assert [m["weight"] for m in record["members"]] == [None] * 3
    card = (folder / "README.md").read_text()
    heading = "| member | step | embeddings | layers 1/3 | layers 2/3 | layers 3/3 | head |"
    assert f"{heading}\n|---|---:|---:|---:|---:|---:|---:|\n" in card
    assert "| step-20 | 20 | 0.3000 | 0.0000 | 0.6000 | 0.4000 | 0.0000 |" in card
