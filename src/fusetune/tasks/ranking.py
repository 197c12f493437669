"""How probable a model finds each of several answers to one prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from fusetune.tasks.task import Batch
from fusetune.tasks.teacher_forcing import (
    IGNORED,
    decoder_inputs,
    gathered,
    is_seq2seq,
)

OPTIONS = "option_ids"
"""Name of the batch's options: `b x k x t` tokens, `IGNORED` where there are none."""


def option_log_probs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log p of each option's tokens, `b x k x t`, float32, and their number, `b x k`.

    Where an option has no more tokens, the log p is 0.

    The prompt is read once and shared by its options: by the key-value cache of a causal
    model, by the encoder's states of another.

    Args:
        model: In evaluation mode.
        batch: With `OPTIONS`; of a causal model's prompts, "prompt_ids" and "prompt_mask",
            padded on the left.
    """
    options = batch[OPTIONS]
    b, k, t = options.shape
    flat = options.view(b * k, t)
    score = _seq2seq if is_seq2seq(model) else _causal
    return score(model, batch, flat, k).view(b, k, t), (options != IGNORED).sum(dim=2)


def _seq2seq(model: Any, batch: Batch, options: Tensor, k: int) -> Tensor:
    encoder = model.get_encoder()
    read = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    found = model(
        encoder_outputs=BaseModelOutput(
            last_hidden_state=read.last_hidden_state.repeat_interleave(k, dim=0)
        ),
        attention_mask=batch["attention_mask"].repeat_interleave(k, dim=0),
        decoder_input_ids=decoder_inputs(model, options),
        use_cache=False,
    )
    return gathered(found.logits, options)


def _causal(model: Any, batch: Batch, options: Tensor, k: int) -> Tensor:
    mask = batch["prompt_mask"]
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = model(
        input_ids=batch["prompt_ids"],
        attention_mask=mask,
        position_ids=places,
        use_cache=True,
        logits_to_keep=1,
    )
    first = read.logits[:, -1:].repeat_interleave(k, dim=0)
    score = gathered(first, options[:, :1])
    if options.shape[1] == 1:
        return score
    cache = read.past_key_values
    cache.batch_repeat_interleave(k)
    given = options[:, :-1]
    start = mask.sum(dim=1, keepdim=True).repeat_interleave(k, dim=0)
    found = model(
        input_ids=given.clamp(min=0),
        attention_mask=torch.cat(
            [mask.repeat_interleave(k, dim=0), (given != IGNORED).to(mask.dtype)], dim=1
        ),
        position_ids=start + torch.arange(given.shape[1], device=given.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([score, gathered(found.logits, options[:, 1:])], dim=1)
