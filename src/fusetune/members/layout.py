"""Where each tensor stands when all tensors of one dtype are laid out in one row.

Notation: k members; P elements of a group, gaps included; tiles of T columns.

A row is cut into tiles, and a block of members is `tiles x k x T`: each tile is one small
matrix that one BLAS call averages. Every tensor starts on a multiple of `ALIGN` elements,
so that every address is aligned for vector instructions. With that, the sum of an element
does not depend on the tensors beside it, on the width of the tile or on the number of
threads (measured with MKL; at other offsets, 1 element in some hundreds was rounded
otherwise).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from fusetune.members.header import TensorSpec

ALIGN = 16  # elements; 64 bytes of float32
# Columns. On two idle cores, 15 members of 22.7 M float32 take 53 to 56 ms (25 GB/s) with
# every tile of 2^16 to 2^20; a busy machine favours wide tiles (fewer waits for a late thread),
# the float32 copy of 16-bit members favours what fits the cache.
TILE = 1 << 18


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one tensor in its group's row: elements `start` to `start + numel`."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.numel


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a tensor that stands in a tile.

    Attributes:
        name: The tensor.
        tensor: Its elements, counted in the flattened tensor.
        tile: The same elements, counted from the tile's first column.
    """

    name: str
    tensor: slice
    tile: slice


@dataclass(frozen=True)
class Group:
    """All floating-point tensors of one stored dtype, one after another.

    Attributes:
        dtype: As stored.
        slots: In the order of their names.
        width: P, a multiple of `ALIGN`.
        tile: T, a multiple of `ALIGN`, at most P.
    """

    dtype: torch.dtype
    slots: tuple[Slot, ...]
    width: int
    tile: int

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of sums: float64 for float64, otherwise float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def num_tiles(self) -> int:
        """Tiles in a row; the last may be narrower."""
        return -(-self.width // self.tile)

    def columns(self, tile: int) -> slice:
        """The elements of the row that tile number `tile` holds."""
        return slice(tile * self.tile, min((tile + 1) * self.tile, self.width))

    def pieces(self, tile: int) -> Iterator[Piece]:
        """The parts of tensors that stand in tile number `tile`, in order."""
        columns = self.columns(tile)
        first = bisect_right(self._starts, columns.start) - 1
        for slot in self.slots[first:]:
            if slot.start >= columns.stop:
                break
            a, b = max(slot.start, columns.start), min(slot.stop, columns.stop)
            if a < b:
                yield Piece(
                    slot.name,
                    slice(a - slot.start, b - slot.start),
                    slice(a - columns.start, b - columns.start),
                )

    @cached_property
    def _starts(self) -> list[int]:
        return [slot.start for slot in self.slots]


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    groups: What is averaged.
    fixed: Names of what is not: integers, booleans.
    constant: Names of what is equal in all members, and needs no averaging.
    """

    groups: tuple[Group, ...]
    fixed: tuple[str, ...]
    constant: tuple[str, ...] = ()


def lay_out(
    tensors: Mapping[str, TensorSpec], tile: int = TILE, constant: Collection[str] = ()
) -> Layout:
    """Give every floating-point tensor its place, but for the constant ones.

    Args:
        tensors: Of one member; the others have the same.
        tile: T before it is cut to P; a multiple of `ALIGN`.
        constant: Names of tensors that are equal in all members.
    """
    if tile <= 0 or tile % ALIGN:
        raise ValueError(f"A tile must be a positive multiple of {ALIGN} columns; got {tile}.")
    by_dtype: dict[torch.dtype, list[Slot]] = {}
    widths: dict[torch.dtype, int] = {}
    fixed = []
    for name, info in sorted(tensors.items()):
        if not info.dtype.is_floating_point:
            fixed.append(name)
        elif info.numel and name not in constant:
            start = widths.get(info.dtype, 0)
            slot = Slot(name, info.shape, start, info.numel)
            by_dtype.setdefault(info.dtype, []).append(slot)
            widths[info.dtype] = -(-slot.stop // ALIGN) * ALIGN
    groups = [
        Group(dtype, tuple(slots), widths[dtype], min(tile, widths[dtype]))
        for dtype, slots in by_dtype.items()
    ]
    return Layout(tuple(groups), tuple(fixed), tuple(sorted(constant)))
