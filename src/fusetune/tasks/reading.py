"""Prompts that a model reads once, to score given answers and to write its own behind them.

Notation: b prompts, t tokens of the longest, a of the longest given answer, v tokens of the
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from fusetune.tasks.kept_tokens import EVERY, KeptTokens
from fusetune.tasks.task import Batch
from fusetune.tasks.teacher_forcing import (
    IGNORED,
    TOKENS,
    counts,
    decoder_inputs,
    gathered,
    is_seq2seq,
    unwrapped,
)

LEAST_SHARED = 4  # fewer common tokens are not worth a pass of their own
CAUSAL = {"position_ids", "logits_to_keep", "past_key_values"}
SEQ2SEQ = {"encoder_outputs", "decoder_input_ids", "past_key_values"}


class Reading(Protocol):
    """What a model has read: the prompts, and the tokens that it writes behind them."""

    def score(self, answers: Tensor) -> Tensor:
        """Log p of given answers `b x a` (`IGNORED` behind their ends); 0 there."""
        ...

    def start(self) -> Tensor:
        """Logits of every row's first token, `b x v`."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `m x v` behind one more token of each of the m rows that are left, `m`."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the rows that are left."""
        ...


def read(model: nn.Module, batch: Batch, room: int) -> Reading:
    """Read a batch's prompts.

    Args:
        model: One that `can_read` is true of, in evaluation mode.
        batch: "prompt_ids" and "prompt_mask", padded on the left, or, of an encoder's
            prompts, "input_ids" and "attention_mask", padded on the right.
        room: Most tokens of an answer, given or written.
    """
    inner = unwrapped(model)
    return (
        Seq2SeqReading(inner, batch, room)
        if is_seq2seq(inner)
        else CausalReading(inner, batch, room)
    )


def can_read(model: nn.Module) -> bool:
    """Whether the model is of the usual shape: full attention with a key-value cache."""
    inner = unwrapped(model)
    known = set(inspect.signature(inner.forward).parameters)
    if is_seq2seq(inner):
        return known >= SEQ2SEQ
    if not known >= CAUSAL:
        return False
    layers = DynamicCache(config=inner.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


class CausalReading:
    """A causal model behind its prompts; what all share at their start is read only once."""

    def __init__(self, model: Any, batch: Batch, room: int) -> None:
        self._model = model
        ids, self._mask = batch["prompt_ids"], batch["prompt_mask"].clone()
        rows, width = ids.shape
        self._kept = KeptTokens(rows, width + room)
        shared = _shared(ids, self._mask)
        if shared:
            first = int(self._mask.shape[1] - self._mask[0].sum())
            common = ids[:1, first : first + shared]
            self._pass(common, torch.ones_like(common), 0, slice(0, 1))
            self._kept.spread(shared)
            starts = width - self._mask.sum(dim=1, keepdim=True)
            self._mask = (torch.arange(width, device=ids.device) >= starts + shared).long()
            self._mask[:, :shared] = 1
        given = ids[:, shared:]
        found = [
            self._pass(given[part], self._mask[part], shared, part)
            for part in _parts(rows, given.shape[1], ids.device)
        ]
        self._first = torch.cat(found)
        self._length = width

    def _pass(
        self, ids: Tensor, mask: Tensor, length: int, rows: slice = EVERY, every: bool = False
    ) -> Tensor:
        """Logits behind the last token, `b x v`, or behind every one, `b x t x v`.

        The mask is that of all tokens, those read before included.
        """
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, length:]
        found: Tensor = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=self._kept.view(length, rows),
            use_cache=True,
            logits_to_keep=0 if every else 1,
        ).logits
        return found.float() if every else found[:, -1].float()

    def score(self, answers: Tensor) -> Tensor:
        """See `Reading`; before anything is written."""
        found = torch.zeros(answers.shape, device=answers.device)
        found[:, :1] = gathered(self._first[:, None], answers[:, :1])
        for rows in _parts(len(answers), answers.shape[1], answers.device):
            given = answers[rows][:, : int(counts(answers[rows]).max())]
            if given.shape[1] < 2:
                continue
            before, tokens = given[:, :-1], given[:, 1:]
            mask = torch.cat([self._mask[rows], (before != IGNORED).long()], dim=1)
            logits = self._pass(before.clamp(min=0), mask, self._length, rows, every=True)
            found[rows, 1 : given.shape[1]] = gathered(logits, tokens)
        return found

    def start(self) -> Tensor:
        """See `Reading`."""
        return self._first

    def step(self, tokens: Tensor) -> Tensor:
        """See `Reading`."""
        self._mask = torch.cat([self._mask, torch.ones_like(tokens[:, None])], dim=1)
        found = self._pass(tokens[:, None], self._mask, self._length)
        self._length += 1
        return found

    def keep(self, rows: Tensor) -> None:
        """See `Reading`."""
        self._kept.keep(rows)
        self._mask = self._mask.index_select(0, rows)


class Seq2SeqReading:
    """A decoder behind what its encoder has read."""

    def __init__(self, model: Any, batch: Batch, room: int) -> None:
        self._model = model
        ids, self._mask = batch["input_ids"], batch["attention_mask"]
        encoder = model.get_encoder()
        found = [
            encoder(input_ids=ids[part], attention_mask=self._mask[part]).last_hidden_state
            for part in _parts(len(ids), ids.shape[1], ids.device)
        ]
        self._hidden = torch.cat(found)
        self._kept = KeptTokens(len(ids), room + 1)
        self._across: Cache = DynamicCache()
        self._length = 0

    def score(self, answers: Tensor) -> Tensor:
        """See `Reading`."""
        found = torch.zeros(answers.shape, device=answers.device)
        width = answers.shape[1] + self._hidden.shape[1]
        for rows in _parts(len(answers), width, answers.device):
            given = answers[rows][:, : max(1, int(counts(answers[rows]).max()))]
            logits = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._hidden[rows]),
                attention_mask=self._mask[rows],
                decoder_input_ids=decoder_inputs(self._model, given),
                use_cache=False,
            ).logits
            found[rows, : given.shape[1]] = gathered(logits, given)
        return found

    def start(self) -> Tensor:
        """See `Reading`."""
        own = self._model.generation_config.decoder_start_token_id
        first = self._model.config.decoder_start_token_id if own is None else own
        return self.step(self._mask.new_full((len(self._mask),), int(first)))

    def step(self, tokens: Tensor) -> Tensor:
        """See `Reading`."""
        cache = EncoderDecoderCache(self._kept.view(self._length), self._across)
        found = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._hidden),
            attention_mask=self._mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        self._length += 1
        return found[:, -1].float()  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        """See `Reading`."""
        self._kept.keep(rows)
        self._across.batch_select_indices(rows)
        self._hidden = self._hidden.index_select(0, rows)
        self._mask = self._mask.index_select(0, rows)


def _shared(ids: Tensor, mask: Tensor) -> int:
    """How many tokens all prompts begin with, one of each left over; 0 if that is few."""
    rows = [row[there].tolist() for row, there in zip(ids, mask.bool(), strict=True)]
    low, high = min(rows), max(rows)  # in the order of words: what these share, all share
    most = min(map(len, rows)) - 1
    pairs = zip(low[:most], high[:most], strict=True)
    same = next((i for i, (x, y) in enumerate(pairs) if x != y), most)
    return same if len(rows) > 1 and same >= LEAST_SHARED else 0


def _parts(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Rows in parts of a pass each, whose activations and logits fit in memory."""
    size = max(1, TOKENS["cpu" if device.type == "cpu" else "other"] // max(1, width))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))
