"""Greedy search from which texts leave as they end, behind prompts that are read once.

What is written is, token for token, what `model.generate` writes. It does less: the prompts
are not read again for the loss, what they have in common is read for one of them, and
a text that has ended is not carried on until the longest of its batch has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fusetune.tasks.decoding import Decoding, StopStrings, ends_of, pad_id, texts_of
from fusetune.tasks.reading import Reading, can_read, read
from fusetune.tasks.task import Batch
from fusetune.tasks.teacher_forcing import IGNORED, answers

LEAVE = 0.85  # what is kept of a batch is copied once that share of it is left


def applies(model: nn.Module, settings: Decoding) -> bool:
    """Whether `answer` knows how: greedy search without penalties, a model of usual shape."""
    plain = settings.repetition_penalty == 1.0 and settings.no_repeat_ngram_size == 0
    return settings.num_beams == 1 and plain and can_read(model)


@torch.no_grad()
def answer(
    model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase, settings: Decoding
) -> tuple[Tensor, list[str], list[bool]]:
    """Log p of the references' tokens, row by row, flat; texts; whether each hit the limit.

    Args:
        model: In evaluation mode; `applies` is true of it.
        batch: Of `AnswerCollator`, with labels; b examples.
        tokenizer: Of the model.
        settings: Of the search.
    """
    given = answers(batch)
    reading = read(model, batch, max(given.shape[1], settings.max_new_tokens))
    scored = reading.score(given)[given != IGNORED]
    ends = ends_of(model, tokenizer)
    stop = StopStrings(settings.stop, tokenizer, 0) if settings.stop else None
    said = write(
        reading,
        most=settings.max_new_tokens,
        least=settings.min_new_tokens,
        ends=ends,
        pad=pad_id(tokenizer),
        stopped=None if stop is None else lambda tokens: stop(tokens, None),
    )
    texts, limited = texts_of(said, set(ends), tokenizer, settings)
    return scored, texts, limited


def write(
    reading: Reading,
    *,
    most: int,
    least: int,
    ends: list[int],
    pad: int,
    stopped: Callable[[Tensor], Any] | None = None,
) -> list[list[int]]:
    """The most probable token after each other, `b` rows, filled up with `pad`.

    Args:
        reading: Of b prompts.
        most: Tokens of a text.
        least: No text ends before it has so many.
        ends: Tokens that end a text.
        pad: Stands behind the end.
        stopped: Whether texts `m x t` are done for another reason, `m`.
    """
    logits = reading.start()
    final = torch.tensor(ends, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    alive = torch.ones_like(rows, dtype=torch.bool)
    said = torch.full((len(rows), most), pad, device=logits.device)
    for t in range(most):
        if t < least:
            logits[:, final] = -torch.inf
        tokens = torch.where(alive, logits.argmax(dim=-1), pad)
        said[rows, t] = tokens
        alive = alive & ~torch.isin(tokens, final)
        if stopped is not None:
            alive = alive & ~stopped(said[rows, : t + 1])
        left = int(alive.sum())
        if left == 0 or t + 1 == most:
            break
        if left <= LEAVE * len(alive):
            going = alive.nonzero().squeeze(1)
            reading.keep(going)
            rows, tokens, alive = rows[going], tokens[going], alive[going]
        logits = reading.step(tokens)
    found: list[list[int]] = said[:, : t + 1].tolist()
    return found
