"""Hidden states of every example of a data set, in one memory-mapped file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class PrefixCache:
    """The hidden states of n examples, without padding, one after the other.

    The file's name holds the digest of all that the states depend on: a file of another
    model, other data or another precision is never taken for this one.

    Args:
        path: A complete file.
        lengths: `n`, int64; tokens per example.
        width: Numbers per token, h.
        dtype: How they are kept.
        computed: The precision of the states in the model.

    Raises:
        ValueError: If the file has another size.
    """

    def __init__(
        self,
        path: Path,
        lengths: NDArray[np.int64],
        width: int,
        dtype: torch.dtype,
        computed: torch.dtype = torch.float32,
    ) -> None:
        self.path = path
        self.lengths = lengths
        self.dtype = dtype
        self.computed = computed
        size = int(lengths.sum()) * width
        if path.stat().st_size != size * dtype.itemsize:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not those of {size}")
        # Not shared: the mapping is private to this process, and nothing writes to it.
        flat = torch.from_file(str(path), shared=False, size=size, dtype=dtype)
        self._states = flat.view(-1, width)
        self._ends: list[int] = np.cumsum(lengths).tolist()

    def gather(self, rows: Tensor, mask: Tensor) -> Tensor:
        """The states of some examples, where their tokens stand in a padded batch.

        Args:
            rows: `b`, int64.
            mask: `b x t`; 1 for a token, 0 for padding, on either side.

        Returns:
            `b x t x h`, on the mask's device, 0 at padding.

        Raises:
            ValueError: If the mask is not that of these examples.
        """
        kept = mask.bool()
        chosen = rows.tolist()
        if kept.sum(dim=1).tolist() != self.lengths[chosen].tolist():
            raise ValueError("The attention mask does not fit the lengths of these rows.")
        ends, lengths = self._ends, self.lengths
        found = torch.cat([self._states[ends[r] - int(lengths[r]) : ends[r]] for r in chosen])
        padded = torch.zeros(
            (*mask.shape, found.shape[1]), dtype=self.computed, device=mask.device
        )
        padded[kept] = found.to(mask.device, self.computed)
        return padded


def digest(parts: Sequence[object]) -> str:
    """A short digest of all that the states depend on, for the file's name."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def nbytes(lengths: NDArray[np.int64], width: int, dtype: torch.dtype) -> int:
    """Size of the file."""
    return int(lengths.sum()) * width * dtype.itemsize


def build(
    path: Path,
    lengths: NDArray[np.int64],
    batches: Iterable[tuple[NDArray[np.int64], Mapping[str, Any]]],
    states: Callable[[Mapping[str, Any]], Tensor],
    dtype: torch.dtype,
) -> None:
    """Compute the states of every example and write the file, whole or not at all.

    Args:
        path: Of the file; files beside it that are not this one are removed first, so that
            the folder holds one cache at a time.
        lengths: `n`, int64; tokens per example.
        batches: Rows and padded inputs, each example once.
        states: Inputs → `b x t x h`.
        dtype: How the states are kept.

    Raises:
        ValueError: If the batches do not hold every example once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        other.unlink()
    temporary = path.with_suffix(".tmp")
    ends = np.cumsum(lengths)
    flat: Tensor | None = None
    seen = 0
    for rows, inputs in batches:
        kept = inputs["attention_mask"].bool()
        found = states(inputs)
        if flat is None:
            flat = _create(temporary, (int(ends[-1]), found.shape[2]), dtype)
        if kept.sum(dim=1).tolist() != lengths[rows].tolist():
            raise ValueError("The attention mask does not fit the lengths of these rows.")
        parts = found[kept].to("cpu", dtype).split(lengths[rows].tolist())
        for row, part in zip(rows, parts, strict=True):
            flat[int(ends[row] - lengths[row]) : int(ends[row])] = part
        seen += len(rows)
    if flat is None or seen != len(lengths):
        raise ValueError(f"{seen} of {len(lengths)} examples were given.")
    del flat
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _create(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A new file of that shape, mapped for writing."""
    size = math.prod(shape)
    with path.open("wb") as file:
        file.truncate(size * dtype.itemsize)
        if hasattr(os, "posix_fallocate"):  # a full disk is an OSError now, a crash later
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
