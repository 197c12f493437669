"""The uniform average of members whose units are aligned to the first one's, streaming."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusetune.members.alignment import AlignedBlock, align_block
from fusetune.members.blocks import Block, Kind, find_blocks
from fusetune.members.member import Members


@dataclass(slots=True)
class Movement:
    """What aligning did to the units of one kind of one member.

    Attributes:
        units: In all layers.
        moved: How many were given another place.
        before: Sum over the units of the squared distance to the reference's unit.
        after: The same, aligned.
    """

    units: int = 0
    moved: int = 0
    before: float = 0.0
    after: float = 0.0

    @property
    def distances(self) -> tuple[float, float]:
        """Mean squared distance of a unit to the reference's, as it was and aligned."""
        return self.before / self.units, self.after / self.units

    def add(self, block: Block, aligned: AlignedBlock) -> None:
        """Count one block more."""
        self.units += block.units
        self.moved += aligned.moved
        self.before += aligned.before
        self.after += aligned.after


@dataclass(frozen=True, slots=True)
class AlignedAverage:
    """The average, and what aligning did.

    Attributes:
        tensors: Under the names and in the dtypes of the members' files.
        movements: Kind → one entry for every member but the first, in their order.
    """

    tensors: dict[str, Tensor]
    movements: dict[Kind, list[Movement]] = field(default_factory=dict)

    @property
    def moved(self) -> int:
        """Units of all members that were given another place."""
        return sum(m.moved for members in self.movements.values() for m in members)


def aligned_average(pool: Members, *, regularisation: float | None = None) -> AlignedAverage:
    """Align every member to the first, block by block, and average uniformly.

    The mean is made in float32 (float64 for float64 members) and rounded to the stored
    dtype. Memory is one model as stored and the tensors of one block, of the mean and of two
    members, with the costs between its units. Integers and booleans, which the members
    share (`average.Average` makes sure), are those of the first.

    Args:
        pool: The members; they fit together.
        regularisation: None for permutations; see `alignment.align_block`.

    Raises:
        StageError: If the architecture is not supported; before any tensor is read.
        MemberError: If a file cannot be read any more.
    """
    blocks = find_blocks(pool.config, {n: info.shape for n, info in pool.tensors.items()})
    k = len(pool.members)
    movements = {block.kind: [Movement() for _ in range(k - 1)] for block in blocks}
    result: dict[str, Tensor] = {}
    for block in blocks:
        reference = _load(pool, 0, block)
        means = {name: _Mean(tensor) for name, tensor in reference.items()}
        for i in range(1, k):
            other = _load(pool, i, block)
            aligned = align_block(block, reference, other, regularisation=regularisation)
            movements[block.kind][i - 1].add(block, aligned)
            for name, mean in means.items():
                mean.add(aligned.tensors[name])
        result |= {name: mean.rounded() for name, mean in means.items()}
    for name in pool.tensors.keys() - result.keys():
        result[name] = _plain_average(pool, name)
    return AlignedAverage({name: result[name] for name in pool.tensors}, movements)


class _Mean:
    """A running mean: equal tensors stay what they are, to the last bit."""

    def __init__(self, first: Tensor) -> None:
        self._dtype = first.dtype
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        self._mean = first.to(wide, copy=True)
        self._count = 1

    def add(self, tensor: Tensor) -> None:
        self._count += 1
        self._mean.lerp_(tensor.to(self._mean.dtype), 1.0 / self._count)

    def rounded(self) -> Tensor:
        return self._mean.to(self._dtype)


def _load(pool: Members, index: int, block: Block) -> dict[str, Tensor]:
    return {part.name: pool.load_tensor(index, part.name) for part, _ in block.parts}


def _plain_average(pool: Members, name: str) -> Tensor:
    first = pool.load_tensor(0, name)
    if not first.is_floating_point():
        return first.clone()
    mean = _Mean(first)
    for i in range(1, len(pool.members)):
        mean.add(pool.load_tensor(i, name))
    return mean.rounded()
