"""How probable a model finds the tokens of the answers, given those before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusetune.tasks.task import Batch

IGNORED = -100  # label of a token that is not part of the answer
TOKENS = {"cpu": 1024, "other": 16384}  # of one forward pass: its logits must fit as well
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")


def logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits `t x v` of the batch's t answer tokens, and these tokens, `t`, row by row.

    A causal model predicts each token at the one before it; of the prompt's tokens, which
    have no labels, nothing is kept.

    Args:
        model: Causal or sequence-to-sequence.
        batch: "input_ids", "attention_mask" and "labels", padded on the right.
    """
    labels = batch["labels"]
    given: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
    if is_seq2seq(model):
        if "decoder_input_ids" not in given:
            given["decoder_input_ids"] = decoder_inputs(model, labels)
        found = model(**given, use_cache=False).logits
    else:
        found, labels = model(**given, use_cache=False).logits[:, :-1], labels[:, 1:]
    wanted = labels != IGNORED
    return found[wanted].float(), labels[wanted]


def log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """The log p of each answer token, `t`, float32, differentiable; see `logits`."""
    found, tokens = logits(model, batch)
    return -torch.nn.functional.cross_entropy(found, tokens, reduction="none")


def is_seq2seq(model: nn.Module) -> bool:
    """Whether the model has an encoder and a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def unwrapped(model: nn.Module) -> Any:
    """The model itself, adapters left in it, of what PEFT wraps."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def decoder_inputs(model: nn.Module, labels: Tensor) -> Tensor:
    """What the decoder reads while it is taught `labels`: these, one place later."""
    inner = cast("Any", model)
    shifted: Tensor = inner.prepare_decoder_input_ids_from_labels(labels=labels)
    return shifted


def counts(labels: Tensor) -> Tensor:
    """`b`; answer tokens of each row."""
    return (labels != IGNORED).sum(dim=1)


def parts(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    """The batch in parts whose logits fit in memory, row by row in order.

    Padding that is only in other parts is cut off; it stands on the right.

    Args:
        model: Causal or sequence-to-sequence: the labels of the first stand at the inputs'
            places, those of the second have a width of their own.
        batch: As in `logits`.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    seq2seq = is_seq2seq(model)
    kind = "cpu" if ids.device.type == "cpu" else "other"
    rows = max(1, TOKENS[kind] // (ids.shape[1] + (labels.shape[1] if seq2seq else 0)))
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        width = max(1, int(batch["attention_mask"][part].sum(dim=1).max()))
        answer = max(1, int(counts(labels[part]).max())) if seq2seq else width
        yield {
            "input_ids": ids[part, :width],
            "attention_mask": batch["attention_mask"][part, :width],
            "labels": labels[part, :answer],
        }


def in_parts(model: nn.Module, batch: Batch) -> Tensor:
    """`log_probabilities` of a batch of any size, part after part."""
    return torch.cat([log_probabilities(model, part) for part in parts(model, batch)])


def answers(batch: Batch) -> Tensor:
    """The batch's answers by themselves, `b x a`, `IGNORED` behind their ends.

    Args:
        batch: "labels"; of a causal model's prompts, "prompt_mask" as well.
    """
    labels = batch["labels"]
    if "prompt_mask" not in batch:
        return labels
    lengths = counts(labels)
    places = torch.arange(max(1, int(lengths.max())), device=labels.device)
    starts = batch["prompt_mask"].sum(dim=1, keepdim=True)
    found = labels.gather(1, (starts + places).clamp(max=labels.shape[1] - 1))
    return torch.where(places < lengths[:, None], found, IGNORED)


def gathered(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log p of each token, 0 where there is none: logits `m x t x v`, tokens `m x t`."""
    chosen = logits.float().log_softmax(dim=-1).gather(2, tokens.clamp(min=0)[..., None])
    return torch.where(tokens == IGNORED, 0.0, chosen.squeeze(-1))
