"""Batches of similar length: little padding, and tensors that are made only once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.tasks.task import Collate, Encoded

CPU_TOKENS = 4096
GPU_TOKENS = 65536


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """A padded batch and the places of its examples in the split.

    Attributes:
        rows: `b`, int64.
        inputs: Model inputs by name, on the model's device.
    """

    rows: NDArray[np.int64]
    inputs: dict[str, Tensor]


def token_batches(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Rows sorted by length and cut so that a padded batch has at most `budget` tokens.

    The order depends on the lengths alone, so that the same split always gives the same
    batches. An example longer than the budget is a batch by itself.

    Args:
        lengths: `n`; tokens per example.
        budget: Padded tokens per batch.
    """
    order = np.argsort(lengths, kind="stable")[::-1]  # longest first: memory fails early
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        padded = -(-longest // 8) * 8  # collation pads to a multiple of 8
        size = max(1, budget // padded)
        batches.append(order[start : start + size])
        start += size
    return batches


def prepare(
    encoded: Encoded, collate: Collate, device: torch.device, budget: int | None = None
) -> list[IndexedBatch]:
    """The whole split as padded tensors on the device.

    Args:
        encoded: A tokenised split.
        collate: The task's padding.
        device: Where the model is.
        budget: Padded tokens per batch; by kind of device if None.
    """
    tokens = budget or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    return [
        IndexedBatch(
            rows,
            {
                name: value.to(device)
                for name, value in collate([encoded[int(i)] for i in rows]).items()
            },
        )
        for rows in token_batches(encoded.lengths, tokens)
    ]
