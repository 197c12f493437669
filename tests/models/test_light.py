from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from fusetune.errors import RecipeError
from fusetune.models.light import freeze_layers, layer_stack

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SMALL))


def distilbert() -> PreTrainedModel:
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=64, dim=32, n_layers=3, n_heads=2, hidden_dim=64)
    )


def t5() -> PreTrainedModel:
    return T5ForSequenceClassification(
        T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=3,
            num_heads=2,
            eos_token_id=1,
        )
    )


MODELS = {
    "bert.encoder.layer": bert,
    "roberta.encoder.layer": lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL)),
    "deberta.encoder.layer": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(**SMALL, relative_attention=True, position_biased_input=False)
    ),
    "distilbert.transformer.layer": distilbert,
    "model.layers": lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)),
    "transformer.encoder.block": t5,
}


@pytest.mark.parametrize("name", MODELS)
def test_finds_the_stack_and_trains_what_is_above(name: str) -> None:
    model = MODELS[name]()
    frozen = freeze_layers(model, 2)
    assert (frozen.stack, frozen.layers, frozen.of) == (name, 2, 3)
    assert 0 < frozen.trainable < frozen.total
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(n.startswith((f"{name}.0.", f"{name}.1.")) for n in trainable)
    assert any(n.startswith(f"{name}.2.") for n in trainable)
    assert not any("embed" in n for n in trainable)


def test_frozen_layers_have_no_dropout_while_training() -> None:
    model = bert()
    freeze_layers(model, 2)
    model.train()
    inputs = {"input_ids": torch.arange(8)[None], "output_hidden_states": True}
    first, second = (model(**inputs).hidden_states for _ in range(2))
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[3], second[3])  # the trained layer keeps its dropout
    model.eval()
    assert not model.training


def test_at_least_one_layer_has_to_train() -> None:
    with pytest.raises(
        RecipeError, match=r"freeze_layers is 3, but bert\.encoder\.layer has 3"
    ):
        freeze_layers(bert(), 3)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="Linear has no stack of layers"):
        layer_stack(torch.nn.Linear(2, 2))
