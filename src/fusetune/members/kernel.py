"""Σ w_i θ_i over one tile, and <g, θ_i>: the only arithmetic of averaging.

The sum is a matrix-vector product in float32 over the members whose weight is not zero.
A member of zero weight is not read at all: it must not bring in a NaN, and it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.members.points import Mixture


@dataclass(frozen=True, slots=True)
class Mix:
    """Coefficients of the members, made ready for the kernel.

    Attributes:
        vector: `k`, in the accumulator's dtype and on its device.
        runs: Ranges of neighbouring members whose weights are not zero, in order.
        single: The member that has all the weight, if one has.
    """

    vector: Tensor
    runs: tuple[tuple[int, int], ...]
    single: int | None

    @classmethod
    def of(cls, weights: Mixture, dtype: torch.dtype, device: torch.device) -> Mix:
        """Prepare weights; one that rounds to zero in `dtype` is zero."""
        vector = torch.tensor(weights.values, dtype=dtype)
        used = [bool(v) for v in vector.tolist()]
        runs: list[tuple[int, int]] = []
        for i, is_used in enumerate(used):
            if is_used and runs and runs[-1][1] == i:
                runs[-1] = (runs[-1][0], i + 1)
            elif is_used:
                runs.append((i, i + 1))
        only = used.index(True) if sum(used) == 1 else None
        single = only if only is not None and weights.values[only] == 1.0 else None
        return cls(vector.to(device), tuple(runs), single)

    def members(self) -> Iterator[int]:
        """The members that take part."""
        for start, stop in self.runs:
            yield from range(start, stop)


class Kernel:
    """Averages tiles of one group; owns the float32 copy that 16-bit members need.

    Args:
        k: Number of members.
        stored: Dtype of the members.
        accumulator: Dtype of the sum.
        tile: Widest tile that will come.
        device: Where the tiles are.
    """

    def __init__(
        self,
        k: int,
        stored: torch.dtype,
        accumulator: torch.dtype,
        tile: int,
        device: torch.device,
    ) -> None:
        self._stored = stored
        self._converts = stored != accumulator
        self._wide = (
            torch.empty(k, tile, dtype=accumulator, device=device) if self._converts else None
        )

    def __call__(self, rows: Tensor, mix: Mix, out: Tensor) -> None:
        """Write the average of `rows` into `out`.

        Args:
            rows: `k x n`, as stored; rows of zero weight are not read.
            mix: The weights.
            out: `n`, contiguous, in the accumulator's dtype. For 16-bit members its
                values are rounded to the stored dtype: what is evaluated is what a file
                of that dtype can hold.
        """
        if mix.single is not None:
            out.copy_(rows[mix.single])
            return
        for i, (start, stop) in enumerate(mix.runs):
            part = self._widened(rows, start, stop)
            if i == 0:
                torch.mv(part.t(), mix.vector[start:stop], out=out)
            else:
                out.addmv_(part.t(), mix.vector[start:stop])
        if self._converts:
            out.copy_(out.to(self._stored))

    def products(self, rows: Tensor, vector: Tensor) -> Tensor:
        """The product of every row with one vector, `k`, in the accumulator's dtype.

        Args:
            rows: `k x n`, as stored; all of them are read.
            vector: `n`, of any floating dtype and on any device.
        """
        wide = self._widened(rows, 0, rows.shape[0])
        return torch.mv(wide, vector.to(wide))

    def _widened(self, rows: Tensor, start: int, stop: int) -> Tensor:
        if self._wide is None:
            return rows[start:stop]
        part = self._wide[start:stop, : rows.shape[1]]
        return part.copy_(rows[start:stop])
