"""An orthonormal basis of the members' span, without ever forming it.

.. [Demmel2012] J. Demmel et al. Communication-optimal Parallel and Sequential QR and LU
   Factorizations. SIAM Journal on Scientific Computing, 2012 (TSQR).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 16  # parameters that are factorised at once


def triangular_factor(tiles: Iterable[Tensor], k: int) -> NDArray[np.float64]:
    """R of Θᵀ = Q R, Θ the k members as rows: `k x k`, upper triangular.

    With it everything in the orthonormal basis Q can be computed from the members
    themselves: Q z = Θᵀ R⁻¹ z and Qᵀ v = R⁻ᵀ Θ v. Tall blocks are factorised one after
    another, each together with the R so far [Demmel2012]; memory is one block.

    Blocks are read in float32 and factorised in float64: members of one trajectory differ
    by a hundredth of their length, and a factor in float32 would lose as many digits.

    Args:
        tiles: `k x n` each, as `Average.member_tiles`.
        k: Number of members.
    """
    factor = torch.zeros(k, k, dtype=torch.float64)
    for tile in tiles:
        for start in range(0, tile.shape[1], BLOCK):
            block = tile[:, start : start + BLOCK].t().to("cpu", torch.float64)
            factor = torch.linalg.qr(torch.cat([factor, block]), mode="r").R[:k]
    result: NDArray[np.float64] = factor.numpy()
    return result
