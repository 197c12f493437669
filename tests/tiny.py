"""The tiny models and data sets that tests share, made from configurations and seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fusetune.models.scratch import train_tokenizer

GOOD = ("fine", "lovely", "bright", "kind")
BAD = ("dull", "awful", "grim", "rude")
OTHER = ("the", "film", "was", "quite", "and", "story", "of", "music", "a", "very")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
THINGS = {
    "fruit": ("apple", "pear", "plum", "cherry"),
    "animal": ("horse", "goat", "owl", "trout"),
    "tool": ("hammer", "saw", "drill", "file"),
}
PLACES = ("first", "second", "third")
PLACE_PROMPT = "{{ a }}, {{ b }}{% if c %}, {{ c }}{% endif %}: which is the {{ place }}?"
NAMES = ("Aromi", "Bibimbap House", "<b>Clowns</b>")
FOODS = ("French", "Chinese", "Italian")


# -- models


def bert_config(**changes: Any) -> BertConfig:
    """Two layers of 32 units over 64 tokens, where `changes` do not say otherwise."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    return BertConfig(**(settings | changes))


def bert(**changes: Any) -> BertForSequenceClassification:
    """A classifier with random weights; see `bert_config`."""
    return BertForSequenceClassification(bert_config(**changes))


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew, with deviation 1; the model itself is returned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def word_tokenizer(words: Iterable[str], max_length: int = 32) -> PreTrainedTokenizerFast:
    """One token per word, in their order behind four special ones; [CLS] and [SEP] around."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_bert(folder: Path) -> Path:
    """A pretrained encoder without a head, with a tokenizer of the words of `sentiment`."""
    words = (*GOOD, *BAD, *OTHER)
    word_tokenizer(words).save_pretrained(folder)
    torch.manual_seed(1)
    BertModel(bert_config(vocab_size=len(SPECIAL) + len(words))).save_pretrained(folder)
    return folder


def save_llama(folder: Path, texts: Iterable[str]) -> Path:
    """A decoder that has learned nothing, whose weights are large enough for adapters to use.

    Args:
        folder: Where it and its tokenizer go.
        texts: What the tokenizer learns from.
    """
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    return folder


# -- data


def save_rows(
    folder: Path, row: Callable[[random.Random], dict[str, Any]], **sizes: int
) -> Path:
    """One file of JSON lines per split, of rows drawn one after the other from seed 0."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, n in sizes.items():
        lines = "".join(json.dumps(row(draw)) + "\n" for _ in range(n))
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


def sentiment(draw: random.Random) -> dict[str, Any]:
    """A short text whose label follows from three of its words, except for some noise."""
    marks = [draw.choice(GOOD + BAD) for _ in range(3)]
    good = sum(mark in GOOD for mark in marks) >= 2
    label = good if draw.random() > 0.1 else not good
    words = [*marks, *draw.choices(OTHER, k=draw.randint(2, 8))]
    draw.shuffle(words)
    return {"text": " ".join(words), "label": "good" if label else "bad"}


def rating(draw: random.Random) -> dict[str, Any]:
    """A short text whose number is how many more good than bad words it has, with noise."""
    marks = [draw.choice(GOOD + BAD) for _ in range(3)]
    score = sum(1.0 if mark in GOOD else -1.0 for mark in marks) + draw.gauss(0.0, 0.3)
    words = [*marks, *draw.choices(OTHER, k=draw.randint(2, 8))]
    draw.shuffle(words)
    return {"text": " ".join(words), "score": round(score, 3)}


def place(draw: random.Random) -> dict[str, Any]:
    """Two or three things, and the letter of the first, second or third: see PLACE_PROMPT."""
    group = draw.choice(sorted(THINGS))
    k = draw.choice((2, 3, 3))
    options = [*draw.sample(THINGS[group], k), None][:3]
    right = draw.randrange(k)
    row: dict[str, Any] = dict(zip("abc", options, strict=True))
    return row | {"place": PLACES[right], "answer": "ABC"[right], "kind": group}


def span(draw: random.Random) -> dict[str, Any]:
    """A context of 10 to 50 words; the answer is the one kind word, if there is one."""
    words = draw.choices(OTHER, k=draw.randint(10, 50))
    answers: dict[str, list[object]] = {"text": [], "answer_start": []}
    if draw.random() < 0.7:
        place, word = draw.randrange(len(words)), draw.choice(GOOD)
        words[place] = word
        start = len(" ".join([*words[:place], ""]))
        answers = {"text": [word], "answer_start": [start]}
    return {"q": "the film was", "c": " ".join(words), "answers": answers}


def slots(draw: random.Random) -> dict[str, Any]:
    """A restaurant's name and food, and the sentence that says both."""
    name, food = draw.choice(NAMES), draw.choice(FOODS)
    return {"mr": f"name[{name}], food[{food}]", "ref": f"{name} serves {food} food."}
