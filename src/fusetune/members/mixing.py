"""Which coefficients each tensor is averaged with: of the whole model, or of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fusetune.members.binding import same_bits
from fusetune.members.kernel import Kernel, Mix
from fusetune.members.layers import PARTS, LayerWeights, layer_groups
from fusetune.members.layout import Group
from fusetune.members.member import Members
from fusetune.members.points import Blend, Combination, Mixture

WHOLE = 0  # the number of the only mix where all tensors have the same coefficients


class Mixing:
    """The coefficients of one dtype's tensors, made ready for tiles.

    Neighbouring tensors of one group of layers are averaged in one call of the kernel, so that
    weights by layer cost what one w costs: one pass over the members.

    Args:
        point: What is to be averaged.
        group: The tensors of one dtype.
        device: Where tiles are averaged.
        owners: Tensor → its group of layers; empty for one w.
    """

    def __init__(
        self,
        point: Blend,
        group: Group,
        device: torch.device,
        owners: Mapping[str, int],
    ) -> None:
        self._group = group
        self._owners = owners if isinstance(point, LayerWeights) else {}
        mixtures = point.groups if isinstance(point, LayerWeights) else (point,)
        self._mixes = [Mix.of(w, group.accumulator, device) for w in mixtures]

    @property
    def elements(self) -> int:
        """How many elements of members an average reads."""
        counts = [sum(b - a for a, b in mix.runs) for mix in self._mixes]
        if not self._owners:
            return self._group.width * counts[WHOLE]
        return sum(s.numel * counts[self._mix_of(s.name)] for s in self._group.slots)

    def members(self) -> Iterator[int]:
        """The members that have a weight in any of the tensors, in order."""
        used = {self._mix_of(slot.name) for slot in self._group.slots}
        yield from sorted({i for number in used for i in self._mixes[number].members()})

    def takes(self, member: int, name: str) -> bool:
        """Whether a member has a weight in a tensor."""
        runs = self._mixes[self._mix_of(name)].runs
        return any(start <= member < stop for start, stop in runs)

    def __call__(self, kernel: Kernel, rows: Tensor, tile: int, out: Tensor) -> None:
        """Average tile number `tile`; see `Kernel`.

        Args:
            kernel: Of the group.
            rows: `k x n`.
            tile: Which one `rows` is.
            out: `n`.
        """
        for number, columns in self._runs(tile, len(out)):
            kernel(rows[:, columns], self._mixes[number], out[columns])

    def _runs(self, tile: int, width: int) -> list[tuple[int, slice]]:
        """Number of the mix and columns, gaps between tensors included."""
        if not self._owners:
            return [(WHOLE, slice(0, width))]
        starts: list[tuple[int, int]] = []
        for piece in self._group.pieces(tile):
            number = self._mix_of(piece.name)
            if not starts or starts[-1][0] != number:
                starts.append((number, piece.tile.start if starts else 0))
        ends = [*(start for _, start in starts[1:]), width]
        return [(n, slice(a, b)) for (n, a), b in zip(starts, ends, strict=True)]

    def _mix_of(self, name: str) -> int:
        return self._owners.get(name, WHOLE)


class Owners:
    """Which group of layers each tensor of a pool belongs to, found when it is asked for."""

    def __init__(self, pool: Members) -> None:
        self._pool = pool
        self._found: dict[int, Mapping[str, int]] = {}

    def of(self, point: Blend) -> Mapping[str, int]:
        """Tensor → group; empty where all tensors have the same coefficients."""
        if not isinstance(point, LayerWeights):
            return {}
        if point.parts not in self._found:
            self._found[point.parts] = groups_of(self._pool, point.parts)
        return self._found[point.parts]

    def mixture(self, point: Blend, name: str) -> Mixture:
        """The coefficients that one tensor is averaged with."""
        return point.groups[self.of(point)[name]] if isinstance(point, LayerWeights) else point


def groups_of(pool: Members, parts: int = PARTS) -> dict[str, int]:
    """The groups of a pool's tensors; what is tied to the embeddings belongs to them.

    Files of tied models may hold the shared tensor under both names: a tensor of the head
    that has the bits of one of the embeddings in every member counts as tied.
    """
    tensors = pool.tensors
    groups = layer_groups(tensors, parts)
    tables = [n for n, g in groups.items() if g == 0 and len(tensors[n].shape) == 2]
    heads = [n for n, g in groups.items() if g == parts + 1 and len(tensors[n].shape) == 2]
    tied = [
        head
        for head in heads
        if any(
            tensors[head].shape == tensors[table].shape and _same(pool, head, table)
            for table in tables
        )
    ]
    return layer_groups(tensors, parts, tied)


def scale_of(point: Blend) -> float:
    """Σ a_i, by which a tensor that is equal in all members is multiplied; 1 on the simplex."""
    return math.fsum(point.values) if isinstance(point, Combination) else 1.0


def _same(pool: Members, head: str, table: str) -> bool:
    return all(
        same_bits([pool.load_tensor(i, head), pool.load_tensor(i, table)])
        for i in range(len(pool.members))
    )
