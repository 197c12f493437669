"""How probable a model finds each of several answers to one prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from fusetune.tasks.task import Batch
from fusetune.tasks.teacher_forcing import IGNORED, decoder_inputs, is_seq2seq

OPTIONS = "option_ids"
"""Name of the batch's options: `b x k x t` tokens, `IGNORED` where there are none."""


def option_log_probs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log p of each option's tokens and their number, `b x k` each, float32.

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
    score = (
        _seq2seq(model, batch, flat, k) if is_seq2seq(model) else _causal(model, batch, flat, k)
    )
    return score.view(b, k), (options != IGNORED).sum(dim=2)


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
    return _gathered(found.logits, options).sum(dim=1)


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
    score = _gathered(first, options[:, :1]).sum(dim=1)
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
    return score + _gathered(found.logits, options[:, 1:]).sum(dim=1)


def _gathered(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log p of each token, 0 where there is none: logits `m x t x v`, tokens `m x t`."""
    chosen = logits.float().log_softmax(dim=-1).gather(2, tokens.clamp(min=0)[..., None])
    return torch.where(tokens == IGNORED, 0.0, chosen.squeeze(-1))
