from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fusetune.errors import DataError, RecipeError
from fusetune.evaluation.scorer import Scorer
from fusetune.models.scratch import train_tokenizer
from fusetune.tasks import find
from fusetune.tasks.choice import MultipleChoice
from fusetune.tasks.ranking import OPTIONS

CPU = torch.device("cpu")
CORPUS = ["which is a fruit? apple, stone, house, a big red cherry", "answer: A B C D"]
ROWS: dict[str, list[Any]] = {
    "question": ["which is a fruit?", "which is red?", "a house?", "which?"],
    "a": ["apple", "stone", "house", "a big red cherry"],
    "b": ["stone", "a big red cherry", "apple", "stone"],
    "c": ["house", None, "cherry", ""],
    "right": ["A", "b", "house", "stone"],
    "who": ["doctor", "nurse", "doctor", "doctor"],
}
KINDS = ("t5", "bart", "llama", "gpt2", "qwen2")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 300)


def model_of(kind: str, vocabulary: int) -> Any:
    torch.manual_seed(5)
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    wide = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model: Any
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(**ids, **shape, decoder_start_token_id=0))
    elif kind == "bart":
        sides = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in {"layers": 2, "ffn_dim": 24, "attention_heads": 2}.items()
        }
        config = BartConfig(**ids, **sides, d_model=16, decoder_start_token_id=1)
        model = BartForConditionalGeneration(config)
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**ids, n_embd=16, n_layer=2, n_head=2))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**ids, **wide, **heads))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**ids, **wide, **heads))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and kind != "t5":
                parameter.mul_(6.0)
    return model.eval()


@pytest.fixture
def made(folder: Callable[..., str]) -> Callable[..., MultipleChoice]:
    def make(rows: dict[str, list[Any]] | None = None, **options: Any) -> MultipleChoice:
        columns = rows or ROWS
        data = folder(train=columns, validation=columns, test=columns)
        given = {
            "prompt": "{{ question }} ",
            "reference": "right",
            "metrics": ["accuracy", "group_accuracy"],
            "choices": ["a", "b", "c"],
            "group": "who",
            **options,
        }
        return MultipleChoice("made", data, **given)

    return make


def by_hand(kind: str, model: Any, tokenizer: Any, question: str, option: str) -> list[float]:
    """Log p of an option's tokens, in a forward pass of its own."""
    if kind in ("t5", "bart"):
        inputs = tokenizer(f"{question} ", return_tensors="pt")["input_ids"]
        labels = tokenizer(option, return_tensors="pt")["input_ids"]
        logits = model(input_ids=inputs, labels=labels).logits[0]
        start = 0
    else:
        labels = tokenizer(f"{question} {option}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(question)["input_ids"]) - 1
        logits = model(input_ids=labels).logits[0, :-1]
        labels = labels[:, 1:]
        start -= 1
    found = logits.log_softmax(-1).gather(1, labels[0][:, None]).squeeze(1)
    return [float(v) for v in found[start:]]


@pytest.mark.parametrize("score", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_most_probable_option_is_chosen(
    kind: str,
    score: str,
    tokenizer: PreTrainedTokenizerFast,
    made: Callable[..., MultipleChoice],
) -> None:
    task, model = made(score=score), model_of(kind, len(tokenizer))
    task.configure(model.config)
    data = task.encode("validation", tokenizer, None)
    outputs = Scorer(task, data, task.collate(tokenizer), CPU)(model).outputs
    assert outputs is not None
    reduce = np.sum if score == "sum" else np.mean
    for i, question in enumerate(ROWS["question"]):
        options = [ROWS[c][i] for c in "abc" if ROWS[c][i]]
        with torch.no_grad():
            each = [by_hand(kind, model, tokenizer, question, o) for o in options]
        best = options[int(np.argmax([reduce(e) for e in each]))]
        assert outputs.texts is not None
        assert outputs.texts[i] == best
        right = options.index(task.splits["validation"].labels[i][0])
        assert outputs.loss[i] == pytest.approx(-sum(each[right]), rel=1e-4)
    values = task.score(outputs, data.labels)
    hits = [t == g for t, (g,) in zip(outputs.texts or (), data.labels, strict=True)]
    assert values["accuracy"] == np.mean(hits)
    assert values["group_accuracy"] == (np.mean([hits[0], *hits[2:]]) + hits[1]) / 2


def test_right_options_by_letter_text_place_and_list(
    made: Callable[..., MultipleChoice],
) -> None:
    wanted = [("apple",), ("a big red cherry",), ("house",), ("stone",)]
    assert made().splits["test"].labels.tolist() == wanted
    places = {**ROWS, "right": [0, 1, 0, 1]}
    assert made(places).splits["test"].labels.tolist() == wanted
    lists = {**ROWS, "right": [["a"], ["B"], ["A"], ["b"]]}
    assert made(lists).splits["test"].labels.tolist() == wanted
    letters = made(letters=True, prompt="{{ question }} A: {{ a }} B: {{ b }}")
    assert letters.splits["train"].labels.tolist() == [("A",), ("B",), ("A",), ("B",)]
    assert letters._options[:4] == [("A", "B", "C"), ("A", "B"), ("A", "B", "C"), ("A", "B")]
    gap = {**ROWS, "b": ["stone", "", "apple", "stone"], "c": ["x", "y", "z", "w"]}
    spared = made({**gap, "right": ["A", "c", "A", "B"]}, letters=True)
    assert spared._options[1] == ("A", "C")
    assert spared.splits["train"].labels[1] == ("C",)
    column = {
        "question": ["x y", "z"],
        "options": [["p", "q"], ["r", "s", "t"]],
        "right": [1, 2],
    }
    task = made(column, choices="options", metrics=["accuracy"], group=None)
    assert task.splits["train"].labels.tolist() == [("q",), ("t",)]


def test_rows_without_one_right_option(made: Callable[..., MultipleChoice]) -> None:
    several = {**ROWS, "right": [["a", "b"], ["b"], ["a"], ["d"]]}
    with pytest.raises(DataError, match="2 of 4 train rows have not exactly one right option"):
        _ = made(several).splits
    task = made(several, drop=True)
    assert len(task.splits["validation"]) == 2
    assert any("2 of 4 test rows have not exactly one" in note for note in task.notes)
    with pytest.raises(DataError, match="No row of the train split has a right option"):
        _ = made({**ROWS, "right": ["z"] * 4}).splits
    with pytest.raises(DataError, match="has 2 to 26 options; row 0 of train"):
        _ = made(choices=["a"]).splits
    with pytest.raises(DataError, match="names 'options'"):
        _ = made(choices="options").splits


def test_wrong_settings(
    made: Callable[..., MultipleChoice], tokenizer: PreTrainedTokenizerFast
) -> None:
    assert find("multiple-choice") is MultipleChoice
    with pytest.raises(RecipeError, match="one of sum, mean"):
        made(score="max")
    with pytest.raises(RecipeError, match="group"):
        made(group=None)
    with pytest.raises(RecipeError, match="no metric 'f1' of multiple choice"):
        made(metrics=["f1"])
    many = {name: values * 20 for name, values in ROWS.items()}
    task = made({**many, "who": list(map(str, range(80)))})
    with pytest.raises(RecipeError, match="has 80 values; at most 64"):
        _ = task._references


def test_long_questions_are_cut_counted_or_refused(
    made: Callable[..., MultipleChoice], tokenizer: PreTrainedTokenizerFast
) -> None:
    long = {**ROWS, "question": ["which is a fruit? " * 9, *ROWS["question"][1:]]}
    model = model_of("llama", len(tokenizer))
    model.config.max_position_embeddings = 32
    task = made(long)
    task.configure(model.config)
    data = task.encode("validation", tokenizer, None)
    assert max(len(f["prompt_ids"]) + len(o) for f in data for o in f[OPTIONS]) <= 32
    (note,) = [note for note in task.notes if "prompts were cut" in note]
    assert note.startswith("1 of 4 validation prompts were cut at their beginning to ")
    outputs = Scorer(task, data, task.collate(tokenizer), CPU)(model).outputs
    assert outputs is not None
    assert outputs.texts is not None
    assert outputs.texts[0] in ("apple", "stone", "house")
    refusing = made(long, too_long="refuse")
    refusing.configure(model.config)
    with pytest.raises(DataError, match="1 of 4 prompts have more than the"):
        refusing.encode("validation", tokenizer, None)
