"""Prompts → generated texts: greedy or beam search, in batches, with limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fusetune.errors import ModelError, RecipeError, closest
from fusetune.tasks.teacher_forcing import unwrapped


@dataclass(frozen=True, slots=True)
class Decoding:
    """How texts are generated. Nothing is drawn at random.

    Attributes:
        max_new_tokens: Where a text ends that has not ended by itself.
        min_new_tokens: It does not end before.
        num_beams: 1 is greedy search.
        length_penalty: Of beam search; above 0, longer texts.
        no_repeat_ngram_size: No n-gram of that size twice; 0 allows all.
        repetition_penalty: 1 is none.
        stop: A text ends before the first of these strings.
        batch_tokens: Tokens of a batch, padding and room for new ones included.

    Raises:
        RecipeError: If a value makes no sense.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "num_beams": 1, "batch_tokens": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "stop":
                if not all(isinstance(text, str) and text for text in value):
                    raise RecipeError(
                        f"task.options.generation.stop lists texts; got {list(value)}."
                    )
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise RecipeError(
                    f"task.options.generation.{field.name} is a number; got {value!r}."
                )
            elif isinstance(field.default, int) and (
                not isinstance(value, int) or value < least.get(field.name, 0)
            ):
                raise RecipeError(
                    f"task.options.generation.{field.name} is a whole number from "
                    f"{least.get(field.name, 0)}; got {value!r}."
                )
        if self.repetition_penalty <= 0.0 or self.min_new_tokens > self.max_new_tokens:
            raise RecipeError(
                "task.options.generation needs repetition_penalty > 0 and min_new_tokens ≤ "
                f"max_new_tokens; got {self.repetition_penalty}, {self.min_new_tokens} and "
                f"{self.max_new_tokens}."
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Decoding:
        """From the recipe's keys.

        Raises:
            RecipeError: If a key or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise RecipeError(
                    f"task.options.generation has no {name!r}{closest(name, known)}."
                )
        stop = options.get("stop", ())
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        return cls(**{**options, "stop": stop})


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills up a batch: the pad token, or the end of text where there is none.

    Raises:
        ModelError: If the tokenizer has neither.
    """
    for name in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if name is not None:
            return int(cast("int", name))
    raise ModelError(
        "The tokenizer has neither a pad token nor an end-of-text token, so that texts could "
        "not be told to end.",
        "Set eos_token in tokenizer_config.json.",
    )


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Tensor,
    mask: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    settings: Decoding,
) -> tuple[list[str], list[bool]]:
    """Texts without the prompts, and whether each ran into the limit.

    Args:
        model: In evaluation mode; any that has `generate`.
        prompts: `b x t`, padded on the left where the model is causal.
        mask: `b x t`, of the prompts.
        tokenizer: Of the model.
        settings: Of the search.

    Returns:
        `b` texts without white space around them, `b` flags.
    """
    writer = unwrapped(model)
    config = _configuration(writer, tokenizer, settings)
    seq2seq = bool(getattr(model.config, "is_encoder_decoder", False))
    skipped = 1 if seq2seq else prompts.shape[1]
    criteria = StoppingCriteriaList()
    if settings.stop:
        criteria.append(StopStrings(settings.stop, tokenizer, skipped))
    with _without_habits(writer, config):
        sequences: Tensor = writer.generate(
            input_ids=prompts,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=criteria,
        )
    ends = set(ends_of(model, tokenizer))
    return texts_of(sequences[:, skipped:].tolist(), ends, tokenizer, settings)


def texts_of(
    rows: Sequence[list[int]],
    ends: set[int],
    tokenizer: PreTrainedTokenizerBase,
    settings: Decoding,
) -> tuple[list[str], list[bool]]:
    """New tokens as texts without white space around them, and which ran into the limit.

    Args:
        rows: As many tokens each; what stands behind an end is no part of the text.
        ends: Tokens that end a text.
        tokenizer: Of the model.
        settings: With the limit and the stop strings.
    """
    texts, limited = [], []
    for row in rows:
        end = next((i for i, token in enumerate(row) if token in ends), None)
        text = str(tokenizer.decode(row[:end], skip_special_tokens=True))
        cut = before(text, settings.stop)
        texts.append(cut.strip())
        ended = end is not None or len(cut) < len(text) or len(row) < settings.max_new_tokens
        limited.append(not ended)
    return texts, limited


def ends_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the model's own, which may be several, or the tokenizer's."""
    own = getattr(model, "generation_config", None)
    found: Any = None if own is None else own.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    return [int(token) for token in (found if isinstance(found, list) else [found])]


def before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings, or all of it."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else text


class StopStrings(StoppingCriteria):
    """Ends a text once one of several strings stands in it.

    Args:
        stop: The strings.
        tokenizer: Decodes the newest tokens, as many as the longest string can need.
        skipped: Tokens before the first new one.
    """

    def __init__(
        self, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase, skipped: int
    ) -> None:
        self._stop = tuple(stop)
        self._tokenizer = tokenizer
        self._skipped = skipped
        # A token has at least one byte, except for the halves of a character.
        self._tail = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """`b`, boolean; which rows are done."""
        tail = input_ids[:, max(self._skipped, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(tail, skip_special_tokens=True)
        done = [any(text in found for text in self._stop) for found in texts]
        return torch.tensor(done, device=input_ids.device)


def _configuration(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Decoding
) -> GenerationConfig:
    """What the recipe says, whatever habits stand in the model's own configuration."""
    own = getattr(model, "generation_config", None) or GenerationConfig()
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens or None,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        repetition_penalty=settings.repetition_penalty,
        early_stopping=False,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
        return_dict_in_generate=False,
        eos_token_id=ends_of(model, tokenizer),
        pad_token_id=pad_id(tokenizer),
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )


@contextlib.contextmanager
def _without_habits(model: Any, config: GenerationConfig) -> Iterator[None]:
    """`generate` takes from the model's own settings whatever the given ones leave open."""
    own = getattr(model, "generation_config", None)
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
