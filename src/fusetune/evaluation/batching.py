"""Batches of similar length: little padding, and tensors that are made only once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.tasks.task import Collate, Encoded

CPU_TOKENS = 1024  # a layer's activations stay in a core's own cache
GPU_TOKENS = 65536
GPU_MULTIPLE = 8  # what collation pads to; tensor cores like it, a CPU has no use for it


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """A padded batch and the places of its examples in the split.

    Attributes:
        rows: `b`, int64.
        inputs: Model inputs by name, on the model's device.
    """

    rows: NDArray[np.int64]
    inputs: dict[str, Tensor]


def token_batches(
    lengths: NDArray[np.int64], budget: int, multiple: int = GPU_MULTIPLE
) -> list[NDArray[np.int64]]:
    """Rows sorted by length and cut so that a padded batch has at most `budget` tokens.

    The order depends on the lengths alone, so that the same split always gives the same
    batches. An example longer than the budget is a batch by itself.

    Args:
        lengths: `n`; tokens per example.
        budget: Padded tokens per batch.
        multiple: What the longest of a batch is rounded up to.
    """
    order = np.argsort(lengths, kind="stable")[::-1]  # longest first: memory fails early
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        padded = -(-longest // multiple) * multiple
        size = max(1, budget // padded)
        batches.append(order[start : start + size])
        start += size
    return batches


def prepare(
    encoded: Encoded,
    collate: Collate,
    device: torch.device,
    budget: int | None = None,
    *,
    sizes: NDArray[np.int64] | None = None,
) -> list[IndexedBatch]:
    """The whole split as padded tensors on the device.

    Args:
        encoded: A tokenised split.
        collate: The task's padding.
        device: Where the model is.
        budget: Padded tokens per batch; the split's own, or by kind of device, if None.
        sizes: `n`; what each example takes of the budget; the split's own if None.
    """
    cpu = device.type == "cpu"
    tokens = budget or encoded.budget or default_budget(device)
    sizes = encoded.sizes if sizes is None else sizes
    batches = []
    for rows in token_batches(sizes, tokens, 1 if cpu else GPU_MULTIPLE):
        inputs = collate([encoded[int(i)] for i in rows])
        if cpu:
            inputs = trimmed(inputs)
        batches.append(IndexedBatch(rows, {n: value.to(device) for n, value in inputs.items()}))
    return batches


def default_budget(device: torch.device) -> int:
    """Padded tokens per batch of a plain forward pass."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def trimmed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch without the columns that are padding in every row.

    Padding on the left stays: without it, texts would stand at other positions.

    Args:
        inputs: Padded inputs; those of the attention mask's shape are cut.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return inputs
    longest = max(1, int(mask.sum(dim=1).max()))
    if longest == mask.shape[1] or bool(mask[:, longest:].any()):
        return inputs
    return {
        name: value[:, :longest].contiguous() if value.shape == mask.shape else value
        for name, value in inputs.items()
    }
