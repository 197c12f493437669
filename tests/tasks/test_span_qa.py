from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from fusetune.errors import DataError, RecipeError
from fusetune.evaluation.scorer import Scorer
from fusetune.tasks import find
from fusetune.tasks.span_qa import SpanQuestionAnswering
from fusetune.tasks.spans import PLACES, best_span, windows
from fusetune.tasks.splitting import Splitting

CPU = torch.device("cpu")
CONTEXTS = [" ".join(f"w{i}" for i in range(n, n + 24)) for n in (0, 5, 10)]


def rows(*spans: tuple[int, str] | None) -> dict[str, list[Any]]:
    """Three questions; each answer is a piece of its context, or there is none."""
    answers = [
        {"text": [], "answer_start": []}
        if span is None
        else {"text": [span[1], "w3"], "answer_start": [c.index(span[1]), 0]}
        for span, c in zip(spans, CONTEXTS, strict=True)
    ]
    return {"question": ["w50 w51", "w52", "w53 w54 w55"], "context": CONTEXTS, "a": answers}


ROWS = rows((0, "w20 w21"), None, (2, "w12"))


@pytest.fixture
def made(folder: Callable[..., str]) -> Callable[..., SpanQuestionAnswering]:
    def make(columns: dict[str, list[Any]] = ROWS, **options: Any) -> SpanQuestionAnswering:
        data = folder(train=columns, validation=columns, test=columns)
        given = {
            "text": ["question", "context"],
            "label": "a",
            "metrics": ["exact_match", "f1"],
        }
        return SpanQuestionAnswering("made", data, **{**given, "stride": 3, **options})

    return make


@pytest.fixture(scope="module")
def model() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=64, intermediate_size=24, max_position_embeddings=16, **size)
    made = BertForQuestionAnswering(config)
    with torch.no_grad():
        made.qa_outputs.weight.mul_(40.0)
    return made.eval()


def test_windows_overlap_and_point_to_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    context = CONTEXTS[0]
    first = context.index("w20 w21")
    (found,) = windows([("w50 w51", context)], [(first, first + 7)], tokenizer, 16, 3)
    seen: set[int] = set()
    pointing = 0
    for window in found:
        assert len(window.inputs["input_ids"]) <= 16
        starts = window.offsets[window.offsets[:, 0] >= 0]
        seen |= set(starts[:, 0].tolist())
        if window.start:
            pointing += 1
            span = context[window.offsets[window.start, 0] : window.offsets[window.end, 1]]
            assert span == "w20 w21"
    assert len(seen) == 24  # every word stands in a window
    assert 1 <= pointing < len(found)


def test_losses_and_answers_do_not_depend_on_the_batch(
    tokenizer: PreTrainedTokenizerFast,
    made: Callable[..., SpanQuestionAnswering],
    model: BertForQuestionAnswering,
) -> None:
    task = made()
    data = task.encode("validation", tokenizer, None)
    collate = task.collate(tokenizer)
    together = Scorer(task, data, collate, CPU, token_budget=10_000)
    alone = Scorer(task, data, collate, CPU, token_budget=1)
    assert (len(together.batches), len(alone.batches)) == (1, 3)
    a, b = together(model), alone(model)
    assert a.outputs is not None
    assert b.outputs is not None
    assert a.outputs.texts == b.outputs.texts
    assert any(a.outputs.texts or ())
    np.testing.assert_allclose(a.outputs.predictions, b.outputs.predictions, rtol=1e-4)
    own = []
    for feature in data.features:
        for window in feature["windows"]:
            inputs = {n: torch.tensor([v]) for n, v in window.items() if n not in PLACES}
            places = {n: torch.tensor([window[n]]) for n in PLACES}
            own.append(float(model(**inputs, **places).loss))
    assert a.values["loss"] == pytest.approx(np.mean(own), rel=1e-4)
    log_probs = np.concatenate(a.outputs.log_probs or ())
    assert a.values["loss"] == pytest.approx(-log_probs.mean(), rel=1e-5)
    batch = collate(data.features)
    assert float(task.loss(model, batch)) == pytest.approx(np.mean(own), rel=1e-4)
    drawn = task.with_drawn_labels(model, batch, torch.Generator().manual_seed(0))
    assert drawn[PLACES[0]].shape == batch[PLACES[0]].shape
    assert not torch.equal(drawn[PLACES[0]], batch[PLACES[0]])


def test_training_sees_every_window_by_itself(
    tokenizer: PreTrainedTokenizerFast,
    made: Callable[..., SpanQuestionAnswering],
    model: BertForQuestionAnswering,
) -> None:
    task = made()
    data = task.encode("train", tokenizer, None)
    assert len(data) == len(data.labels) > 3
    batch = task.collate(tokenizer)(data.features)
    loss = model(**batch).loss  # what Trainer computes
    assert loss.isfinite()
    assert float(loss) == pytest.approx(float(task.loss(model, batch)), rel=0.05)


def test_the_best_span_is_that_of_a_full_search() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        starts = [random.normal(size=8).astype(np.float32) for _ in range(2)]
        ends = [random.normal(size=8).astype(np.float32) for _ in range(2)]
        inside = np.array([[-1, -1], *([i * 3, i * 3 + 2] for i in range(6)), [-1, -1]])
        offsets = [inside, np.where(inside >= 0, inside + 40, -1)]
        scored = {
            (int(offsets[w][i, 0]), int(offsets[w][j, 1])): starts[w][i] + ends[w][j]
            for w in range(2)
            for i in range(1, 7)
            for j in range(i, min(7, i + 3))
        }
        best = max(scored, key=scored.__getitem__)
        nothing = min(s[0] + e[0] for s, e in zip(starts, ends, strict=True))
        margin = float(nothing - scored[best])

        def found(threshold: float | None, given: Any = (starts, ends, offsets)) -> Any:
            return best_span(*given, most_tokens=3, threshold=threshold)

        assert found(None) == best
        assert found(margin + 0.01) == best
        assert found(margin - 0.01) == (0, 0)


def test_windows_are_no_longer_than_the_models_positions(
    tokenizer: PreTrainedTokenizerFast,
    made: Callable[..., SpanQuestionAnswering],
    model: BertForQuestionAnswering,
) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.model_max_length = int(1e30)  # as of many tokenizers on the hub
    task = made()
    task.configure(model.config)
    data = task.encode("train", endless, None)
    assert data.lengths.max() == 16
    assert task.outputs(
        model, task.collate(endless)(task.encode("test", endless, None).features)
    )
    roberta = RobertaConfig(max_position_embeddings=20, pad_token_id=1)
    task.configure(roberta)
    assert task.encode("train", endless, None).lengths.max() == 18


def test_rules_and_bad_data(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., SpanQuestionAnswering]
) -> None:
    assert find("span-question-answering") is SpanQuestionAnswering
    assert made().splits["test"].labels.tolist() == [("w20 w21", "w3"), (), ("w12", "w3")]
    wrong = rows((0, "w20"), None, (2, "w12"))
    wrong["a"][0]["answer_start"] = [1, 0]
    with pytest.raises(
        DataError, match="does not stand at character 1 of the context in row 0"
    ):
        _ = made(wrong).splits
    with pytest.raises(DataError, match="without text and answer_start"):
        _ = made({**ROWS, "a": ["x", "y", "z"]}).splits
    with pytest.raises(RecipeError, match="two columns, question and context"):
        made(text=["question"])
    with pytest.raises(RecipeError, match="have no room for the context"):
        made(stride=12).encode("train", tokenizer, None)


def test_values_of_test_do_not_need_a_train_split(
    tokenizer: PreTrainedTokenizerFast,
    folder: Callable[..., str],
    model: BertForQuestionAnswering,
) -> None:
    given = {"text": ["question", "context"], "label": "a", "metrics": ["f1"], "stride": 3}
    other = rows((0, "w3 w4"), (1, "w20"), None)
    data = folder(train=ROWS, validation=ROWS, test=other)
    files = {name: f"{data}/{name}.parquet" for name in ("validation", "test")}
    found = []
    for task in (
        SpanQuestionAnswering("made", data, **given),
        SpanQuestionAnswering("made", files, splitting=Splitting(trains=False), **given),
    ):
        _ = task.encode("validation", tokenizer, None)
        encoded = task.encode("test", tokenizer, None)
        found.append(Scorer(task, encoded, task.collate(tokenizer), CPU)(model))
    assert found[0].values == found[1].values
    assert found[0].outputs is not None
    assert found[1].outputs is not None
    assert found[0].outputs.texts == found[1].outputs.texts
