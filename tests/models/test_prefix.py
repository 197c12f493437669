from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from fusetune.models.light import Frozen, freeze_layers
from fusetune.models.prefix import (
    ROWS,
    PrefixError,
    attach,
    check,
    evaluation_mode,
    fingerprint,
    hidden_states,
    require_constant,
)
from fusetune.models.prefix_cache import PrefixCache, build, nbytes

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
LENGTHS = np.array([5, 9, 3, 7, 8, 4])


def deberta() -> PreTrainedModel:
    config = DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm",
    )
    return DebertaV2ForSequenceClassification(config)


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=3,
        num_heads=2,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5ForSequenceClassification(config)


MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL)),
    "deberta": deberta,
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=64, dim=32, n_layers=3, n_heads=2, hidden_dim=64)
    ),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)),
    "gpt2": lambda: GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=3,
            n_head=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
}


def batch(rows: list[int], *, left: bool = False, width: int = 0) -> dict[str, torch.Tensor]:
    """Examples of `LENGTHS` tokens each, padded on one side."""
    width = width or int(LENGTHS[rows].max())
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        n = int(LENGTHS[row])
        tokens = torch.tensor(np.random.default_rng(row).integers(2, 64, size=n))
        where = slice(width - n, width) if left else slice(0, n)
        ids[place, where], mask[place, where] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def light(name: str) -> tuple[PreTrainedModel, Frozen]:
    torch.manual_seed(0)
    model = MODELS[name]()
    return model, freeze_layers(model, 2)


def cached(
    folder: Path, model: PreTrainedModel, frozen: Frozen, dtype: torch.dtype = torch.float32
) -> PrefixCache:
    batches = [(np.array(rows), batch(rows)) for rows in ([1, 4], [3, 0], [5, 2])]
    with evaluation_mode(model), torch.no_grad():
        path = folder / "cache" / "states.bin"
        build(path, LENGTHS, batches, lambda b: hidden_states(model, frozen, b), dtype)
    return PrefixCache(path, LENGTHS, 32, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    model, frozen = light(name)
    cache = cached(tmp_path, model, frozen)
    twin, _ = light(name)
    attach(model, frozen, cache)
    rows = [2, 1, 5]
    inputs = batch(rows, width=12)
    check(model, inputs, torch.tensor(rows), torch.float32)
    for each, extra in ((twin, {}), (model, {ROWS: torch.tensor(rows)})):
        each.train()
        torch.manual_seed(3)  # dropout above the prefix draws the same numbers
        each(**inputs, **extra, labels=torch.tensor([0, 1, 0])).loss.backward()
    largest = max(float(q.grad.abs().max()) for q in twin.parameters() if q.grad is not None)
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), key
        if p.grad is not None and q.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-5 * largest), key


def test_frozen_layers_do_not_run_and_the_state_dict_is_unchanged(tmp_path: Path) -> None:
    model, frozen = light("bert")
    names = list(model.state_dict())
    attach(model, frozen, cached(tmp_path, model, frozen))
    assert list(model.state_dict()) == names
    calls: list[int] = []
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.attention.register_forward_hook(lambda *_, i=i: calls.append(i))
    model(**batch([0, 1]), **{ROWS: torch.tensor([0, 1])})
    assert calls == [2]
    model(**batch([0, 1]))  # without rows: the network as it is
    assert calls == [2, 0, 1, 2]


def test_llama_with_padding_on_the_left(tmp_path: Path) -> None:
    model, frozen = light("llama")
    attach(model, frozen, cached(tmp_path, model, frozen))
    check(model, batch([0, 1, 2], left=True), torch.tensor([0, 1, 2]), torch.float32)


def test_positions_that_count_padding_are_found_out(tmp_path: Path) -> None:
    """Absolute positions: padding on the left moves a text, so that its states change."""
    model, frozen = light("bert")
    attach(model, frozen, cached(tmp_path, model, frozen))
    with pytest.raises(PrefixError, match="logits from stored states differ by"):
        check(model, batch([0, 1, 2], left=True), torch.tensor([0, 1, 2]), torch.float32)


def test_states_of_other_rows_are_found_out(tmp_path: Path) -> None:
    model, frozen = light("bert")
    cache = cached(tmp_path, model, frozen)
    attach(model, frozen, cache)
    cache._states[int(LENGTHS[0])] += 0.1  # of the second example; the mapping is private
    check(model, batch([0, 2]), torch.tensor([0, 2]), torch.float32)
    with pytest.raises(PrefixError, match="differ"):
        check(model, batch([0, 1]), torch.tensor([0, 1]), torch.float32)
    with pytest.raises(ValueError, match="does not fit the lengths"):
        model(**batch([0, 1]), **{ROWS: torch.tensor([0, 2])})


def test_half_precision_rounds_and_takes_half_the_space(tmp_path: Path) -> None:
    model, frozen = light("bert")
    cache = cached(tmp_path, model, frozen, torch.float16)
    attach(model, frozen, cache)
    assert cache.path.stat().st_size == nbytes(LENGTHS, 32, torch.float16) == 36 * 32 * 2
    check(model, batch([0, 1]), torch.tensor([0, 1]), torch.float16)
    with pytest.raises(PrefixError, match="differ"):
        check(model, batch([0, 1]), torch.tensor([0, 1]), torch.float32)


def test_layers_that_hand_on_more_than_states_are_refused() -> None:
    torch.manual_seed(0)
    model = t5()
    frozen = freeze_layers(model, 2)
    with pytest.raises(PrefixError, match="hand on more than hidden states"):
        hidden_states(model, frozen, batch([0, 1]))


@pytest.mark.parametrize("name", MODELS)
def test_the_states_are_constant_in_training(name: str) -> None:
    model, frozen = light(name)
    model.eval()
    before = torch.random.get_rng_state()
    states = require_constant(model, frozen, batch([0, 1]))
    assert states.shape == (2, 9, 32)
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_states_that_training_changes_are_refused() -> None:
    model, frozen = light("bert")
    model.bert.embeddings.LayerNorm.requires_grad_(True)
    with pytest.raises(PrefixError, match="use trained parameters"):
        require_constant(model, frozen, batch([0, 1]))
    model, frozen = light("bert")
    layer = model.bert.encoder.layer[1]
    layer.register_forward_hook(lambda m, i, out: torch.nn.functional.dropout(out, 0.1))
    with pytest.raises(PrefixError, match="are random in training"):
        require_constant(model, frozen, batch([0, 1]))


def test_the_fingerprint_is_that_of_what_is_frozen() -> None:
    model, frozen = light("bert")
    before = fingerprint(model, frozen)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    assert fingerprint(model, frozen) == before
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias.add_(1e-6)
    assert fingerprint(model, frozen) != before


def test_a_cache_is_whole_or_absent(tmp_path: Path) -> None:
    model, frozen = light("bert")
    path = cached(tmp_path, model, frozen).path
    (path.parent / "older.bin").write_bytes(b"of another model")
    with pytest.raises(ValueError, match="2 of 6 examples"):
        build(
            path.with_name("new.bin"),
            LENGTHS,
            [(np.array([1, 4]), batch([1, 4]))],
            lambda b: hidden_states(model, frozen, b).detach(),
            torch.float32,
        )
    assert [p.name for p in path.parent.iterdir()] == ["new.tmp"]
    path.write_bytes(b"cut off")
    with pytest.raises(ValueError, match="has 7 bytes"):
        PrefixCache(path, LENGTHS, 32, torch.float32)
