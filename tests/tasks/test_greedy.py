"""Texts leave their batch as they end; the tokens are those of `generate`, prompt by prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fusetune.models.lora import LoraSettings, add_lora
from fusetune.models.scratch import train_tokenizer
from fusetune.tasks import greedy, teacher_forcing
from fusetune.tasks.answers import AnswerCollator, AnswerEncoder
from fusetune.tasks.decoding import Decoding, generate
from fusetune.tasks.reading import _shared, can_read

CORPUS = ["the cat sat on the mat", "a dog ran home to eat", "please say: cat -> dog, mat"]
PROMPTS = [
    "cat",
    "a dog on the mat",
    "home",
    "the dog ran home to the cat and sat",
    "eat",
    "mat a",
]
ANSWERS = [
    "mat",
    "the dog ran home to eat the cat",
    "a",
    "home dog",
    "ran to eat",
    "on the mat",
]
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 300)


def model_of(kind: str, vocabulary: int) -> Any:
    """A model of random weights, large enough for texts of many lengths."""
    torch.manual_seed(11)
    wide = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    stack = {**IDS, **wide, "vocab_size": vocabulary, "max_position_embeddings": 96,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    model: Any
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2}
        config = T5Config(**IDS, **shape, vocab_size=vocabulary, decoder_start_token_id=0)
        model = T5ForConditionalGeneration(config)
    elif kind == "bart":
        sides = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in {"layers": 2, "ffn_dim": 24, "attention_heads": 2}.items()
        }
        config = BartConfig(
            **IDS,
            **sides,
            vocab_size=vocabulary,
            d_model=16,
            decoder_start_token_id=1,
            forced_eos_token_id=1,
        )
        model = BartForConditionalGeneration(config)
    elif kind == "gpt2":
        size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
        model = GPT2LMHeadModel(GPT2Config(**IDS, **size, vocab_size=vocabulary))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**stack, sliding_window=8))
    else:
        made = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }
        configuration, build = made[kind]
        model = build(configuration(**stack))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0 if kind in ("t5", "bart") else 8.0)
    return model.eval()


def batch_of(tokenizer: Any, seq2seq: bool) -> dict[str, torch.Tensor]:
    encoder = AnswerEncoder(tokenizer, seq2seq, limit=96, room=24)
    prompts = [f"please say to a dog: {prompt} -> " for prompt in PROMPTS]
    return AnswerCollator(tokenizer)(encoder.features(prompts, ANSWERS, generating=True))


def one_by_one(
    model: Any, batch: Any, tokenizer: Any, settings: Decoding
) -> tuple[list[str], list[bool]]:
    """What the library's own loop writes behind each prompt alone."""
    ids = batch.get("prompt_ids", batch["input_ids"])
    mask = batch.get("prompt_mask", batch["attention_mask"]).bool()
    texts, limited = [], []
    for row, there in zip(ids, mask, strict=True):
        prompt = row[there][None]
        said, ran = generate(model, prompt, torch.ones_like(prompt), tokenizer, settings)
        texts += said
        limited += ran
    return texts, limited


@pytest.mark.parametrize("kind", ["t5", "bart", "llama", "gpt2", "qwen2"])
def test_the_same_tokens_and_losses_as_the_library(
    kind: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, len(tokenizer))
    batch = batch_of(tokenizer, kind in ("t5", "bart"))
    free, _ = one_by_one(model, batch, tokenizer, Decoding(max_new_tokens=14))
    usual_end = max(set("".join(free)), key="".join(free).count)
    own = tokenizer.convert_tokens_to_ids(usual_end)
    model.generation_config.eos_token_id = [1, own]  # so that texts do end, at many places
    monkeypatch.setitem(teacher_forcing.TOKENS, "cpu", 40)  # several parts of a batch
    lengths = set()
    for settings in (
        Decoding(max_new_tokens=14),
        Decoding(max_new_tokens=14, min_new_tokens=4),
        Decoding(max_new_tokens=14, stop=(free[0][3:5] or "a", free[3][2:4] or "b")),
    ):
        assert greedy.applies(model, settings)
        log_probs, texts, limited = greedy.answer(model, batch, tokenizer, settings)
        assert (texts, limited) == one_by_one(model, batch, tokenizer, settings)
        lengths |= {len(text) for text in texts}
        wanted = teacher_forcing.log_probabilities(model, batch)
        torch.testing.assert_close(log_probs, wanted, rtol=1e-4, atol=1e-4)
    assert len(lengths) > (1 if kind == "bart" else 3)


def test_finished_texts_are_not_carried_on(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of what the model is given at each step, only the living remain."""
    model, seen = model_of("llama", len(tokenizer)), []
    batch = batch_of(tokenizer, False)
    handle = model.lm_head.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])))
    free, _ = one_by_one(model, batch, tokenizer, Decoding(max_new_tokens=14))
    stops = tuple(text[k : k + 3] for k, text in enumerate(free, start=1) if text[k : k + 3])
    seen.clear()
    _, texts, _ = greedy.answer(
        model, batch, tokenizer, Decoding(max_new_tokens=14, stop=stops)
    )
    handle.remove()
    steps = seen[-14:]
    assert any(steps[i + 1] < steps[i] for i in range(len(steps) - 1))
    assert len({len(text) for text in texts}) > 1


def test_what_prompts_share_is_read_once(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = batch_of(tokenizer, False)
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    shared = _shared(ids, mask)
    common = tokenizer("please say to a dog:", add_special_tokens=False)["input_ids"]
    assert shared >= len(common)
    assert _shared(ids[:1], mask[:1]) == 0
    same = ids[:1].repeat(3, 1)
    assert _shared(same, mask[:1].repeat(3, 1)) == int(mask[0].sum()) - 1  # one of each is left
    model, read = model_of("gpt2", len(tokenizer)), []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    greedy.answer(model, batch, tokenizer, Decoding(max_new_tokens=1))
    handle.remove()
    assert read[0] == (1, shared)
    assert read[1] == (len(ids), ids.shape[1] - shared)


def test_where_the_librarys_own_loop_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    llama = model_of("llama", len(tokenizer))
    assert not greedy.applies(llama, Decoding(num_beams=2))
    assert not greedy.applies(llama, Decoding(repetition_penalty=1.2))
    assert not greedy.applies(llama, Decoding(no_repeat_ngram_size=2))
    assert not can_read(model_of("mistral", len(tokenizer)))  # its cache forgets
    adapted = add_lora(llama, LoraSettings(2, target_modules=["q_proj"])).eval()
    assert can_read(adapted)
    batch = batch_of(tokenizer, False)
    _, texts, _ = greedy.answer(adapted, batch, tokenizer, Decoding(max_new_tokens=6))
    assert texts == one_by_one(adapted, batch, tokenizer, Decoding(max_new_tokens=6))[0]


def test_a_models_own_habits_do_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    """As of BART for summaries, whose last token is forced: its texts would all seem to end."""
    model = model_of("bart", len(tokenizer))
    assert model.generation_config.forced_eos_token_id == 1
    batch, settings = batch_of(tokenizer, True), Decoding(max_new_tokens=5)
    before = model.generation_config
    prompts, mask = batch["input_ids"], batch["attention_mask"]
    texts, limited = generate(model, prompts, mask, tokenizer, settings)
    assert model.generation_config is before
    assert any(limited)
    _, ours, ran = greedy.answer(model, batch, tokenizer, settings)
    assert (ours, ran) == (texts, limited)
