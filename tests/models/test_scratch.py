from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from fusetune.models import scratch
from fusetune.models.load import resolve

TEXTS = ["name[Aromi], eatType[pub]", "Aromi is a pub.", "Aromi is a pub near the river."] * 4


def test_a_tokenizer_learned_from_texts_knows_every_text() -> None:
    tokenizer = scratch.train_tokenizer(TEXTS, 300)
    assert len(tokenizer) <= 300
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    for text in ("Aromi is a pub.", "Ünïcode £ 漢字\n  spaces"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("Aromi is a pub.")["input_ids"]) < 8
    again = scratch.train_tokenizer(iter(TEXTS), 300)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_the_scratch_t5_is_built_and_comes_back_from_a_folder(tmp_path: Path) -> None:
    source = resolve("t5-scratch")
    source.check()
    tokenizer = source.tokenizer(lambda: TEXTS)
    model = source.build(
        lambda path, **o: scratch.load_or_make(AutoModelForSeq2SeqLM, path, **o)
    )
    assert isinstance(model, T5ForConditionalGeneration)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.5e6, rel=0.02)
    assert model.config.vocab_size >= len(tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not scratch.without_weights(tmp_path)
    back = resolve(str(tmp_path))
    ids = back.tokenizer(lambda: ["other texts"])("Aromi is a pub.")["input_ids"]
    assert ids == tokenizer("Aromi is a pub.")["input_ids"]
