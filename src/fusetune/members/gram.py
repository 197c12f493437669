"""Inner products between members: distances, angles and planes in parameter space.

Members of one trajectory lie close together and far from the origin: their plain inner
products agree in many digits, and what tells them apart is in the last ones. `centre=True`
subtracts the mean first and keeps those digits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.layout import TILE, Group, lay_out
from fusetune.members.member import Members


def gram(pool: Members, centre: bool = False, tile: int = TILE) -> NDArray[np.float64]:
    """<θ_i, θ_j> over all floating-point tensors, `k x k`, symmetric.

    One pass over the members, in float64 by tiles: k tiles are in memory, never a second
    copy of the members. Tensors of integers and booleans are left out.

    Args:
        pool: k members that fit together.
        centre: Whether to take <θ_i - m, θ_j - m> instead, m the mean of all members.
        tile: Columns per tile, a multiple of `layout.ALIGN`.

    Raises:
        MemberError: If a file cannot be read any more, or holds a NaN or an infinity.
        ValueError: If `tile` is not a positive multiple of `layout.ALIGN`.
    """
    k = len(pool.members)
    total = torch.zeros(k, k, dtype=torch.float64)
    for group in lay_out(pool.tensors, tile).groups:
        buffer = torch.zeros(k, group.tile, dtype=torch.float64)
        for number in range(group.num_tiles):
            rows = _rows(pool, group, number, buffer)
            if centre:
                rows -= rows.mean(dim=0)
            total.addmm_(rows, rows.t())
    _require_finite(pool, total)
    matrix: NDArray[np.float64] = total.numpy()
    return (matrix + matrix.T) / 2.0


def _require_finite(pool: Members, total: Tensor) -> None:
    broken = torch.nonzero(~torch.isfinite(total.diagonal())).flatten().tolist()
    if broken:
        names = ", ".join(pool.members[i].path.name for i in broken)
        raise MemberError(
            f"Not every number in the members is finite; it shows in {names}.",
            hint="Leave out the checkpoints with NaN or infinite weights.",
        )


def _rows(pool: Members, group: Group, number: int, buffer: Tensor) -> Tensor:
    """One tile of all members, `k x n`; gaps between tensors are zero."""
    columns = group.columns(number)
    rows = buffer[:, : columns.stop - columns.start].zero_()
    for i in range(len(pool.members)):
        for piece in group.pieces(number):
            source = pool.load_tensor(i, piece.name).view(-1)
            rows[i, piece.tile].copy_(source[piece.tensor])
    return rows
