"""Compiled models: the usual values, from averages that change under the compiled code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from fusetune.evaluation.compiled import TOLERANCE, compiled_scorer
from fusetune.evaluation.scorer import Scorer
from fusetune.tasks.classification import SequenceClassification
from fusetune.tasks.task import Encoded


def pad(features: Any) -> dict[str, Tensor]:
    longest = max(len(f["input_ids"]) for f in features)
    rows = [f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features]
    ids = torch.tensor(rows)
    labels = torch.tensor([f["labels"] for f in features])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


class Bag(nn.Module):
    """The mean of the words, seen by a linear head: quickly traced."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(31, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return Said(self.classifier(self.words(input_ids)))


@dataclass
class Said:
    logits: Tensor


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    return cast(nn.Module, BertForSequenceClassification(config))


def problem(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Scorer]:
    """A model whose parameters are views on one buffer, the buffer, and a scorer."""
    torch.manual_seed(0)
    model = make().eval()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view(p.shape)
        start += p.numel()
    random = np.random.default_rng(2)
    lengths = [12, 12, 11, 9, 9, 9, 7, 5, 5, 4, 4, 3, 3, 3, 3, 2, 2, 1]
    labels = random.integers(0, 2, len(lengths))
    features = tuple(
        {"input_ids": random.integers(1, 31, length).tolist(), "labels": int(label)}
        for length, label in zip(lengths, labels, strict=True)
    )
    task = SequenceClassification(
        "t", "nowhere", text=["text"], label="label", metrics=["accuracy"]
    )
    encoded = Encoded(features, labels, "f")
    return model, flat, Scorer(task, encoded, pad, torch.device("cpu"), token_budget=28)


def predictions(scorer: Scorer, model: nn.Module) -> NDArray[np.float32]:
    outputs = scorer(model).outputs
    assert outputs is not None
    return outputs.predictions


def check_it_follows(make: Callable[[], nn.Module], backend: Any) -> None:
    model, flat, plain = problem(make)
    torch.compiler.reset()
    fast = cast(nn.Module, torch.compile(model, backend=backend, dynamic=True))
    made, why = compiled_scorer(plain, model, fast)
    assert why == ""
    assert made.fingerprint != plain.fingerprint
    assert made.instead == {model: fast}
    before = predictions(made, model)
    for factor in (0.5, -1.5):  # another average, in the same memory
        flat.mul_(factor)
        expected = predictions(plain, model)
        assert np.abs(expected - before).max() > 10 * TOLERANCE
        np.testing.assert_allclose(
            predictions(made, model), expected, rtol=TOLERANCE, atol=TOLERANCE
        )
    other = problem(make)[0]  # a model that was not compiled is scored as it is
    assert np.array_equal(predictions(made, other), predictions(plain, other))


def test_traced_code_follows_the_averages_with_two_compilations() -> None:
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    check_it_follows(Bag, count)
    # Many sizes of batches: code for one example, and code for more.
    assert 1 <= len(graphs) <= 2


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_compiled_code_follows_the_averages() -> None:
    check_it_follows(bert, "inductor")


def test_what_cannot_be_compiled_is_evaluated_as_usual() -> None:
    model, _, plain = problem(Bag)

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    fast = cast(nn.Module, torch.compile(model, backend=broken, dynamic=True))
    made, why = compiled_scorer(plain, model, fast)
    assert made is plain
    assert "no compiler here" in why


def test_code_that_computes_something_else_is_not_used() -> None:
    model, _, plain = problem(Bag)
    wrong = problem(Bag)[0]
    with torch.no_grad():
        wrong.classifier.bias.add_(0.1)
    made, why = compiled_scorer(plain, model, wrong)
    assert made is plain
    assert "differ by up to 0.1" in why
