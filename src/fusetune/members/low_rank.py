"""Sums of low-rank matrices, L R, without ever making the dense matrix.

All in float64: a difference of two close products is a product again, of twice the rank, and
its norm is what remains after most digits have cancelled. Factors of experts have one more
dimension in front and are taken all at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Truncated:
    """The best approximation of L R of a lower rank.

    Attributes:
        left: `rows x rank`.
        right: `rank x columns`; L R ≈ left right, the singular values shared evenly.
        lost: Sum of the squared singular values that were cut off.
        total: Sum of all of them, ‖L R‖².
    """

    left: Tensor
    right: Tensor
    lost: float
    total: float


def squared_norm(left: Tensor, right: Tensor) -> float:
    """‖L R‖² (Frobenius) for `rows x r` and `r x columns`: the trace of LᵀL RRᵀ."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.mT @ left) * (right @ right.mT)).sum()))


def squared_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """‖L_a R_a − L_b R_b‖²."""
    return squared_norm(torch.cat([a[0], -b[0]], dim=-1), torch.cat([a[1], b[1]], dim=-2))


def truncate(left: Tensor, right: Tensor, rank: int) -> Truncated:
    """The best approximation of a rank (Eckart and Young), by QR of the two factors.

    With L = Q_1 R_1 and Rᵀ = Q_2 R_2, the singular values of L R are those of R_1 R_2ᵀ, a
    matrix of the size of the rank.
    """
    first = torch.linalg.qr(left.double())
    second = torch.linalg.qr(right.double().mT)
    u, values, v = torch.linalg.svd(first.R @ second.R.mT, full_matrices=False)
    squares = values.square()
    root = values[..., None, :rank].sqrt()
    return Truncated(
        left=((first.Q @ u[..., :rank]) * root).to(left.dtype),
        right=(root.mT * (v[..., :rank, :] @ second.Q.mT)).to(right.dtype),
        lost=math.fsum(squares[..., rank:].flatten().tolist()),
        total=math.fsum(squares.flatten().tolist()),
    )
