from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
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
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fusetune.errors import DataError, ModelError, RecipeError
from fusetune.evaluation.batching import prepare
from fusetune.evaluation.scorer import Scorer
from fusetune.models.scratch import train_tokenizer
from fusetune.tasks import find, teacher_forcing
from fusetune.tasks.answers import EXAMPLE, AnswerEncoder
from fusetune.tasks.decoding import Decoding, before, generate
from fusetune.tasks.generation import Generation
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import SIZE

CPU = torch.device("cpu")
CORPUS = ["the cat sat on the mat", "a dog ran home to eat", "say: cat -> dog, mat -> home"]
QUESTIONS = ["cat", "dog on the mat", "a home", "ran", "the dog ran home to the cat", "eat"]
ANSWERS = ["mat", "the dog", "a cat sat", "home", "ran to eat", "the mat on the mat"]
Rows = dict[str, list[Any]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 300)


def config_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    size = {"vocab_size": len(tokenizer), **ids}
    stack = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        return T5Config(**size, **shape, decoder_start_token_id=0)
    if kind == "bart":
        layers = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
        wide = {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
        heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
        return BartConfig(
            **size,
            **layers,
            **wide,
            **heads,
            d_model=16,
            max_position_embeddings=64,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    if kind == "gpt2":
        return GPT2Config(**size, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return (LlamaConfig if kind == "llama" else Qwen2Config)(**size, **stack)


MODELS: dict[str, Callable[[Any], PreTrainedModel]] = {
    "t5": T5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "qwen2": Qwen2ForCausalLM,
}


def model_of(kind: str, tokenizer: PreTrainedTokenizerFast, spread: float = 8.0) -> Any:
    """A model whose next token depends on the text: its random weights are made larger."""
    torch.manual_seed(3)
    model = MODELS[kind](config_of(kind, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and kind != "t5":
                parameter.mul_(spread)
    model.generation_config.max_length = 5  # a habit of the model's own, to be overruled
    return model.eval()


def taught(model: Any, task: Generation, batch: dict[str, torch.Tensor]) -> Any:
    """Learns the batch's answers by heart: random encoders hardly tell texts apart."""
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(90):
        adam.zero_grad()
        task.loss(model, batch).backward()
        adam.step()
    return model


@pytest.fixture
def made(folder: Callable[..., str]) -> Callable[..., Generation]:
    def make(rows: Rows | None = None, **options: Any) -> Generation:
        columns = rows or {"question": QUESTIONS, "answer": ANSWERS}
        data = folder(train=columns, validation=columns, test=columns)
        given = {
            "prompt": "say: {{ question }} -> ",
            "reference": "answer",
            "metrics": ["exact_match", "f1", "bleu"],
            "generation": {"max_new_tokens": 12},
            **options,
        }
        return Generation("made", data, **given)

    return make


def encoded(task: Generation, kind: str, tokenizer: Any, split: Any = "validation") -> Any:
    task.configure(config_of(kind, tokenizer))
    return task.encode(split, tokenizer, None)


@pytest.mark.parametrize("kind", MODELS)
def test_losses_are_the_models_own(
    kind: str, tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    task, model = made(metrics=[]), model_of(kind, tokenizer)
    data = encoded(task, kind, tokenizer)
    outputs = Scorer(task, data, task.collate(tokenizer), CPU)(model).outputs
    assert outputs is not None
    assert outputs.texts is None  # nothing is generated for the loss alone
    tokens = []
    for i, feature in enumerate(data.features):
        one = {n: torch.tensor([feature[n]]) for n in ("input_ids", "attention_mask", "labels")}
        tokens.append(sum(label != -100 for label in feature["labels"]))
        own = float(model(**one).loss) * tokens[-1]
        assert outputs.loss[i] == pytest.approx(own, rel=1e-4)
        assert outputs.log_probs is not None
        assert len(outputs.log_probs[i]) == tokens[-1]
    batch = task.collate(tokenizer)(data.features)
    plain = {n: batch[n] for n in ("input_ids", "attention_mask", "labels")}
    assert float(task.loss(model, batch)) == pytest.approx(float(model(**plain).loss), rel=1e-4)
    value = task.score(outputs, data.labels)["loss"]
    assert value == pytest.approx(outputs.loss.sum() / sum(tokens), rel=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_texts_do_not_depend_on_their_batch(
    kind: str, tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    whole, single = made(), made(generation={"max_new_tokens": 12, "batch_tokens": 1})
    if seq2seq := kind in ("t5", "bart"):
        batch = whole.collate(tokenizer)(encoded(whole, kind, tokenizer).features)
        model = taught(model_of(kind, tokenizer, spread=1.0), whole, batch)
    else:
        model = model_of(kind, tokenizer)
    scorers = [
        Scorer(task, encoded(task, kind, tokenizer), task.collate(tokenizer), CPU)
        for task in (whole, single)
    ]
    assert [len(scorer.batches) for scorer in scorers] == [1, len(QUESTIONS)]
    together, alone = (scorer(model).outputs for scorer in scorers)
    assert together is not None
    assert alone is not None
    assert together.texts == alone.texts
    assert together.texts is not None
    np.testing.assert_allclose(together.predictions, alone.predictions, rtol=1e-4)
    if seq2seq:
        assert sum(a == b for a, b in zip(together.texts, ANSWERS, strict=True)) >= 4
    else:  # the usual loop, one prompt at a time, says the same
        assert len(set(together.texts)) > 1
        prompt = tokenizer("say: eat ->", return_tensors="pt")["input_ids"][:, :-1]
        said = model.generate(prompt, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
        assert together.texts[-1] == text.strip()


def test_parts_of_a_batch_keep_whole_answers(
    tokenizer: PreTrainedTokenizerFast,
    made: Callable[..., Generation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inputs and answers of one width, where the longest of each is not in one row."""
    long = "cat dog mat home ran eat"
    task = made({"question": ["a", long], "answer": [f"say: {long} -> ", "a"]}, metrics=[])
    for kind in ("bart", "t5", "gpt2"):
        model = model_of(kind, tokenizer)
        data = encoded(task, kind, tokenizer)
        batch = task.collate(tokenizer)(data.features)
        whole = teacher_forcing.log_probabilities(model, batch)
        monkeypatch.setitem(teacher_forcing.TOKENS, "cpu", 1)
        found = [
            teacher_forcing.log_probabilities(model, part)
            for part in teacher_forcing.parts(model, batch)
        ]
        monkeypatch.undo()
        assert len(found) == 2
        if kind != "gpt2":
            assert batch["labels"].shape == batch["input_ids"].shape
        torch.testing.assert_close(torch.cat(found), whole, rtol=1e-4, atol=1e-4)


def test_only_the_answer_is_learned(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    feature = encoded(made(), "llama", tokenizer)[1]
    learned = [label for label in feature["labels"] if label != -100]
    assert tokenizer.decode(learned) == " the dog</s>"
    prompt = feature["input_ids"][: -len(learned)]
    assert tokenizer.decode(prompt) == "say: dog on the mat ->"
    assert feature["prompt_ids"] == prompt
    assert feature[SIZE] == len(prompt) + 12
    seq = encoded(made(), "t5", tokenizer)[1]
    assert tokenizer.decode(seq["input_ids"]) == "say: dog on the mat -> </s>"
    assert tokenizer.decode(seq["labels"]) == "the dog</s>"
    train = encoded(made(), "llama", tokenizer, "train")[1]
    assert set(train) == {"input_ids", "attention_mask", "labels"}


def test_left_and_right_padding(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    task = made()
    batch = task.collate(tokenizer)(encoded(task, "gpt2", tokenizer).features)
    assert batch["prompt_mask"][:, -1].all()
    assert batch["attention_mask"][:, 0].all()
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch[EXAMPLE].tolist() == list(range(6, 12))  # validation comes after train
    prepared = prepare(encoded(task, "gpt2", tokenizer), task.collate(tokenizer), CPU)
    assert sum(len(b.rows) for b in prepared) == 6


def test_stop_strings_limits_and_beams(tokenizer: PreTrainedTokenizerFast) -> None:
    model = model_of("llama", tokenizer)
    prompts = tokenizer(["say: cat"], return_tensors="pt")["input_ids"][:, :-1]
    mask = torch.ones_like(prompts)

    def said(**options: Any) -> tuple[list[str], list[bool]]:
        return generate(model, prompts, mask, tokenizer, Decoding.of(options))

    (text,), (limited,) = said(max_new_tokens=20)
    assert limited
    stop = text[len(text) // 2 :][:2]
    (short,), (limited,) = said(max_new_tokens=20, stop=stop)
    assert short == before(text, [stop]).strip()
    assert not limited
    assert said(max_new_tokens=20, num_beams=3) == said(max_new_tokens=20, num_beams=3)
    assert len(said(max_new_tokens=3)[0][0]) < len(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new": 3}, r"has no 'max_new' \(did you mean max_new_tokens"),
        ({"num_beams": 0}, "whole number from 1"),
        ({"max_new_tokens": 2.5}, "whole number from 1"),
        ({"min_new_tokens": 80}, "min_new_tokens ≤ max_new_tokens"),
        ({"stop": [3]}, "lists texts"),
    ],
)
def test_decoding_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Decoding.of(options)


def test_labels_drawn_from_the_model_leave_the_inputs_alone(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    task = made()
    for kind in ("gpt2", "bart"):
        model = model_of(kind, tokenizer)
        batch = task.collate(tokenizer)(encoded(task, kind, tokenizer).features)
        generator = torch.Generator().manual_seed(1)
        drawn = task.with_drawn_labels(model, batch, generator)
        assert torch.equal(drawn["input_ids"], batch["input_ids"])
        assert torch.equal(drawn["labels"] == -100, batch["labels"] == -100)
        assert not torch.equal(drawn["labels"], batch["labels"])
        if kind == "bart":
            taught = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
            assert torch.equal(drawn["decoder_input_ids"], taught)
        assert task.loss(model, drawn) < task.loss(model, batch)


def test_several_references_paths_and_groups(
    folder: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = {
        "q": ["cat", "dog", "cat", "mat"],
        "answers": [{"text": ["a cat", "cat"]}, {"text": []}, {"text": ["the cat"]}, None],
    }
    data = folder(train=rows, validation=rows, test=rows)
    options: dict[str, Any] = {
        "prompt": "{{ q }}",
        "reference": "answers.text",
        "generation": {"max_new_tokens": 12},
    }
    with pytest.raises(DataError, match="2 of 4 train rows have no reference"):
        _ = Generation("x", data, metrics=["f1"], **options).splits
    dropped = Generation("x", data, metrics=["f1"], empty_references="drop", **options)
    assert len(dropped.splits["test"]) == 2
    assert any("2 of 4 test rows have no reference" in note for note in dropped.notes)
    task = Generation(
        "x", data, metrics=["f1"], no_answer="nothing", group_references=True, **options
    )
    assert task.splits["validation"].labels.tolist() == [("a cat", "cat", "the cat"), (), ()]
    assert len(task.splits["train"]) == 4
    feature = encoded(task, "llama", tokenizer, "train")[1]
    assert tokenizer.decode([t for t in feature["labels"] if t >= 0]) == "nothing</s>"
    assert task._answer("Nothing") == ""


def test_bad_templates_and_fields(
    made: Callable[..., Generation], folder: Callable[..., str]
) -> None:
    with pytest.raises(RecipeError, match="is no Jinja template"):
        made(prompt="{{ question")
    with pytest.raises(RecipeError, match="names no field"):
        made(prompt="Say something.")
    with pytest.raises(DataError, match="'qustion', but the train split has question, answer"):
        _ = made(prompt="{{ qustion }}").splits
    with pytest.raises(DataError, match=r"task\.reference names 'reply'"):
        _ = made(reference="reply").splits
    with pytest.raises(DataError, match=r"cannot be filled in for row 0 of train"):
        _ = made(prompt="{{ question.missing.deeper }}").splits
    with pytest.raises(DataError, match="a int in row 0"):
        _ = made({"question": ["a"], "answer": [3]}).splits
    with pytest.raises(DataError, match="cannot be filled in"):  # a sandbox, not Python
        _ = made(prompt="{{ question.__class__.__mro__ }}").splits
    with pytest.raises(RecipeError, match="one of left, right, refuse"):
        made(too_long="middle")


def test_long_prompts_are_cut_or_refused(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    long = {"question": ["cat " * 60 + "END", "dog"], "answer": ["x", "mat " * 90]}
    sides = {"left": "END ->", "right": "say: cat"}
    for side, kept in sides.items():
        task = made(long, too_long=side)
        data = encoded(task, "gpt2", tokenizer)
        assert len(data[0]["prompt_ids"]) == 64 - 12
        assert kept in tokenizer.decode(data[0]["prompt_ids"])
        assert data.lengths.max() <= 64
        assert any("1 of 2 validation prompts were cut" in note for note in task.notes)
        assert any("1 of 2 validation answers were cut" in note for note in task.notes)
    with pytest.raises(DataError, match="1 of 2 prompts have more than the 52 tokens"):
        encoded(made(long, too_long="refuse"), "gpt2", tokenizer)
    cut = encoded(made(long), "bart", tokenizer)[0]["input_ids"]
    assert len(cut) == 64
    assert cut[-1] == tokenizer.eos_token_id
    with pytest.raises(RecipeError, match="nothing is left for the prompt"):
        encoded(made(generation={"max_new_tokens": 64}), "gpt2", tokenizer)


def test_tokenizers_without_pad_or_end(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    padless = train_tokenizer(CORPUS, 300)
    padless.pad_token = None
    task = made()
    batch = task.collate(padless)(encoded(task, "gpt2", padless).features)
    assert batch["input_ids"][0, -1] == padless.eos_token_id
    assert sum("no pad token" in note for note in task.notes) == 1
    endless = train_tokenizer(CORPUS, 300)
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        encoded(task, "gpt2", endless)


def test_chat_templates(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    chat = train_tokenizer(CORPUS, 300)
    with pytest.raises(RecipeError, match="needs a chat template"):
        encoded(made(chat=True), "llama", chat)
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    task = made(chat=True, system="be brief", prompt="{{ question }}")
    feature = encoded(task, "llama", chat)[0]
    assert chat.decode(feature["prompt_ids"]) == "[system] be brief\n[user] cat\n[assistant] "
    answer = [label for label in feature["labels"] if label != -100]
    assert chat.decode(answer) == "mat</s>"


def test_texts_at_the_limit_are_counted(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation]
) -> None:
    task, model = made(), model_of("llama", tokenizer)
    data = encoded(task, "llama", tokenizer)
    outputs = Scorer(task, data, task.collate(tokenizer), CPU)(model).outputs
    assert outputs is not None
    ran = int(outputs.predictions[:, 2].sum())
    assert ran > 0
    (note,) = task.remarks("validation", [("swa", outputs)])
    assert note.endswith(f"the limit of 12 new tokens: swa {ran}.")
    part = outputs.at(np.array([4, 1]))
    assert part.texts == (outputs.texts[4], outputs.texts[1])  # type: ignore[index]


def test_the_kind_is_found_and_settings_change_the_fingerprint(
    tokenizer: PreTrainedTokenizerFast, made: Callable[..., Generation], tmp_path: Path
) -> None:
    assert find("generation") is Generation
    prints = [
        encoded(made(**options), "llama", tokenizer).fingerprint
        for options in ({}, {"metrics": ["f1"]}, {"generation": {"max_new_tokens": 11}})
    ]
    assert len(set(prints)) == 3
    assert encoded(made(), "llama", tokenizer).fingerprint == prints[0]
    with pytest.raises(ValueError, match="configure"):
        made().encode("train", tokenizer, None)
    model_of("llama", tokenizer).save_pretrained(tmp_path / "model")
    task = made()
    assert isinstance(task.build(str(tmp_path / "model")), LlamaForCausalLM)
    assert task.pipeline_tag == "text-generation"


def test_answers_are_tokenised_as_they_stand_behind_the_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = AnswerEncoder(tokenizer, seq2seq=False, limit=64, room=4)
    spaced, closed = encoder.features(["the ", "the"], ["cat", "cat"], generating=True)
    whole = tokenizer("the cat")["input_ids"]
    assert spaced["input_ids"] == whole
    assert dataclasses.asdict(encoder)["cut_prompts"] == 0
    assert tokenizer.decode(closed["input_ids"]) == "thecat</s>"


def test_values_of_test_do_not_need_a_train_split(
    tokenizer: PreTrainedTokenizerFast, folder: Callable[..., str]
) -> None:
    columns = {"question": QUESTIONS, "answer": ANSWERS}
    other = {"question": QUESTIONS[::-1], "answer": ANSWERS[::-1]}
    data = folder(train=columns, validation=columns, test=other)
    files = {name: f"{data}/{name}.parquet" for name in ("validation", "test")}
    given: dict[str, Any] = {
        "prompt": "say: {{ question }} -> ",
        "reference": "answer",
        "metrics": ["f1", "bleu"],
        "generation": {"max_new_tokens": 6},
    }
    model, found = model_of("llama", tokenizer), []
    for task in (
        Generation("made", data, **given),
        Generation("made", files, splitting=Splitting(trains=False), **given),
    ):
        rows = encoded(task, "llama", tokenizer, "test")
        found.append(Scorer(task, rows, task.collate(tokenizer), CPU)(model).values)
    assert found[0] == found[1]
