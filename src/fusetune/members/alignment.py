"""Give the units of one model the order of another's, by optimal transport.

Units (neurons of feed-forward layers, attention heads; see `blocks`) of a member are matched
with those of a reference so that the sum of squared distances between the weights of matched
units, incoming and outgoing, is least [Singh2020, alignment by weights]. All masses are equal,
so the exact plan is a permutation, and a permuted model computes what it computed before.

What passes from layer to layer (embeddings, normalisation, the residual stream) keeps its
order. [Imfeld2023] aligns it too, for models trained from different starts; checkpoints that
began as one pretrained model share it, and moving it would only part them. Like [Singh2020]
but unlike [Imfeld2023], a head moves as a whole: a mixture of dimensions from several heads
would not be what the model computed.

.. [Singh2020] S. P. Singh, M. Jaggi. Model Fusion via Optimal Transport. NeurIPS 2020.
.. [Imfeld2023] M. Imfeld et al. Transformer Fusion with Optimal Transport. ICLR 2024,
   arXiv:2310.05719.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import ot
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.members.blocks import Block, Part

Matrix = NDArray[np.float64]
Tensors = Mapping[str, Tensor]

MOST_PIVOTS = 10**9  # of the network simplex: never reached, so that the plan is the best one
ACCURACY = 1e-6  # of a cost, as a share of the typical one: costs are made in float32


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """The units of one block in the order of the reference.

    Attributes:
        tensors: All tensors of the block, in their dtypes.
        moved: Units that are matched with another place than their own.
        before: Squared distance of all units to the reference's, as they were.
        after: The same, aligned.
    """

    tensors: dict[str, Tensor]
    moved: int
    before: float
    after: float


def align(
    reference: Tensors,
    other: Tensors,
    blocks: Iterable[Block],
    *,
    regularisation: float | None = None,
) -> dict[str, Tensor]:
    """The tensors of `other`, its units in the order of the reference.

    Args:
        reference: A whole model, or at least all tensors of the blocks.
        other: A model of the same shapes.
        blocks: See `blocks.find_blocks`.
        regularisation: See `align_block`.
    """
    tensors = dict(other)
    for block in blocks:
        tensors |= align_block(block, reference, other, regularisation=regularisation).tensors
    return tensors


def align_block(
    block: Block, reference: Tensors, other: Tensors, *, regularisation: float | None = None
) -> AlignedBlock:
    """Match the units of one block with the reference's, and put them in that order.

    Args:
        block: Of both models.
        reference: Has the tensors of the block.
        other: Likewise.
        regularisation: None for the exact plan, a permutation. Otherwise the entropic
            regularisation of Sinkhorn's algorithm as a share of the largest cost (0.01 is
            mild): each unit becomes a mean of several units, weighted by the plan. That is
            the soft alignment of [Imfeld2023], and it changes what the model computes.

    Returns:
        The aligned tensors. If a cost is not finite (a member that diverged), nothing moves.

    Raises:
        ValueError: If the regularisation is not positive.
    """
    if regularisation is not None and not regularisation > 0.0:
        raise ValueError(f"The regularisation must be positive; got {regularisation}.")
    between_groups = _costs(block.group_parts, block.groups, reference, other)
    between_units = _costs(block.unit_parts, block.units, reference, other)
    by_group, by_unit = _plans(block, between_groups, between_units, regularisation)
    aligned: dict[str, Tensor] = {}
    for parts, plan in ((block.group_parts, by_group), (block.unit_parts, by_unit)):
        places = plan.argmax(axis=1)
        for part in parts:
            rows = part.slices(other[part.name], len(plan))
            rows = rows[places] if regularisation is None else _mixed(rows, plan)
            aligned[part.name] = part.restore(rows, other[part.name])
    own_place = by_unit.argmax(axis=1) == np.arange(block.units)
    return AlignedBlock(
        tensors=aligned,
        moved=int(block.units - own_place.sum()),
        before=squared_distance(reference, {name: other[name] for name in aligned}),
        after=squared_distance(reference, aligned),
    )


def squared_distance(reference: Tensors, other: Tensors) -> float:
    """Σ (a − b)² over all tensors of `other`, summed in float64."""
    total = 0.0
    for name, tensor in other.items():
        difference = _wide(reference[name]) - _wide(tensor)
        total += float(difference.square_().sum(dtype=torch.float64))
    return total


def _costs(parts: Iterable[Part], count: int, reference: Tensors, other: Tensors) -> Matrix:
    """Squared distances of every slice of the reference to every slice of the other.

    `count x count`. In float32, by |a|² + |b|² − 2ab: exact enough to tell units apart.
    """
    total = torch.zeros(count, count)
    for part in parts:
        a = _wide(part.slices(reference[part.name], count))
        b = _wide(part.slices(other[part.name], count))
        total = total.to(a.dtype)
        total += a.square().sum(1)[:, None]
        total += b.square().sum(1)
        total.addmm_(a, b.t(), alpha=-2.0)
    return total.clamp_(min=0.0).numpy().astype(np.float64)


def _plans(
    block: Block, groups: Matrix, units: Matrix, regularisation: float | None
) -> tuple[Matrix, Matrix]:
    """How much of each unit goes where; rows are the reference's places and sum to 1.

    For each pair of groups, the units inside are matched first; what that costs is part of
    the cost of matching the groups. So the two plans together are the best of all that
    keep groups together.

    Returns:
        The plan of the groups, `groups x groups`, and of the units, `units x units`.
    """
    g, r = block.groups, block.per_group
    if r == 1:
        plan = _plan(groups + units, regularisation)
        return plan, plan
    inner = units.reshape(g, r, g, r).transpose(0, 2, 1, 3)
    pairs = np.array([[_plan(cost, regularisation) for cost in row] for row in inner])
    by_group = _plan(groups + (pairs * inner).sum(axis=(2, 3)), regularisation)
    by_unit = (by_group[:, :, None, None] * pairs).transpose(0, 2, 1, 3).reshape(g * r, g * r)
    return by_group, by_unit


def _plan(cost: Matrix, regularisation: float | None) -> Matrix:
    """The optimal transport plan between equal masses, `n x n`; its rows sum to 1."""
    n = len(cost)
    if n == 1 or not np.isfinite(cost).all():
        return np.eye(n)
    masses = np.ones(n)
    if regularisation is None:
        plan = ot.emd(masses, masses, cost, numItermax=MOST_PIVOTS)
        gain = np.trace(cost) - (plan * cost).sum()
        # Units that are equal (all zero, say) have no better place: leave them in theirs.
        return np.asarray(plan) if gain > ACCURACY * n * cost.mean() else np.eye(n)
    largest = max(float(cost.max()), np.finfo(np.float64).tiny)
    plan = ot.sinkhorn(
        masses, masses, cost / largest, regularisation, method="sinkhorn_log", warn=False
    )
    return np.asarray(plan / plan.sum(axis=1, keepdims=True))


def _mixed(rows: Tensor, plan: Matrix) -> Tensor:
    wide = _wide(rows)
    return (torch.from_numpy(plan).to(wide) @ wide).to(rows.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
