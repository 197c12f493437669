"""Checkpoints of sentence-transformers with modules that were trained beside the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import fusetune
from fusetune.errors import ModelError
from fusetune.library.result import Candidate, Fused

library: Any = pytest.importorskip("sentence_transformers")

WEIGHTS = (0.5, 0.3, 0.2)
TEXTS = ["w1 w2 w3", "w5 w6"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of CLS pooling, a dense layer, a layer norm and a normalisation."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    folder = tmp_path_factory.mktemp("sentences")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(20))]
    model = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder / "base")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=24, num_hidden_layers=1, **sizes)
    BertModel(config).save_pretrained(folder / "base")
    body = Transformer(str(folder / "base"))
    parts = [body, Pooling(8, pooling_mode="cls"), Dense(8, 6), LayerNorm(6), Normalize()]
    chain = library.SentenceTransformer(modules=parts, device="cpu")
    for i in range(3):
        for parameter in chain.parameters():
            nn.init.normal_(parameter)
        chain.save_pretrained(str(folder / "out" / f"checkpoint-{i}"), create_model_card=False)
    return folder / "out"


def embeddings(folder: Path | str) -> torch.Tensor:
    return torch.tensor(library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def fused(output: Path, **options: Any) -> Fused:
    return fusetune.fuse(
        output,
        evaluate=lambda model: {"loss": float(model.encode(TEXTS).std())},
        objectives=["loss"],
        budget=4,
        device="cpu",
        **options,
    )


@pytest.mark.parametrize("given", [False, True])
def test_every_module_is_fused_and_saved(output: Path, tmp_path: Path, given: bool) -> None:
    load = library.SentenceTransformer
    own = load(str(output / "checkpoint-2"), device="cpu")
    result = fused(output, **({"model_init": lambda: own} if given else {}))
    states = [load(str(f), device="cpu").state_dict() for f in sorted(output.iterdir())]
    reference = load(str(output / "checkpoint-0"), device="cpu")
    reference.load_state_dict(
        {
            name: sum(w * s[name] for w, s in zip(WEIGHTS, states, strict=True))
            if value.is_floating_point()
            else value
            for name, value in states[0].items()
        }
    )
    want = torch.tensor(reference.encode(TEXTS))
    chosen = Candidate(fusetune.FusionWeights(WEIGHTS), {"loss": 0.0})
    model: Any = result.model(chosen)
    torch.testing.assert_close(torch.tensor(model.encode(TEXTS)), want)
    saved = result.save(tmp_path / "fused", chosen)
    torch.testing.assert_close(embeddings(saved), want)
    names = [type(part).__name__ for part in load(str(saved), device="cpu")]
    assert names == ["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"]


def test_one_module_alone_is_refused(output: Path) -> None:
    own = library.SentenceTransformer(str(output / "checkpoint-2"), device="cpu")
    with pytest.raises(ModelError, match=r"2_Dense/model\.safetensors, .*3_LayerNorm"):
        fused(output, model_init=lambda: own[0].auto_model)
