"""The factors of all adapters on one weight, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.members.adapter_source import AdapterSource


@dataclass(frozen=True, slots=True)
class Stack:
    """One adapted weight W and the changes that k members make to it, in W's layout.

    Of a parameter of experts, W, L and R have one more dimension in front, the expert.

    Attributes:
        kept: W, as stored, or what makes it anew from the levels of a quantised layer.
        left: L, `rows x Σr`, scalings and DoRA's scales included.
        right: R, `Σr x columns`.
        owners: `Σr`, whose column of L and row of R it is.
        scales: c, `k x outputs`, one for members without DoRA; None if no member has it.
        along: The dimension of W that counts outputs.
    """

    kept: Tensor | Callable[[], Tensor]
    left: Tensor
    right: Tensor
    owners: Tensor
    scales: Tensor | None
    along: int

    @classmethod
    def of(cls, source: AdapterSource, name: str, device: torch.device) -> Stack:
        """Read the factors of one weight."""
        module, along = source.weights[name], source.along(name)
        wide, shape = source.accumulator(name), source.tensors[name].shape
        lows = [source.low(i, module) for i in range(len(source.members))]
        ranks = [0 if low is None else low.right.shape[-2] for low in lows]
        *experts, rows, columns = shape
        left = torch.empty(*experts, rows, sum(ranks), dtype=wide)
        right = torch.empty(*experts, sum(ranks), columns, dtype=wide)
        scales = torch.ones(len(lows), (rows, columns)[along], dtype=wide)
        start = 0
        for low, rank, scale in zip(lows, ranks, scales, strict=True):
            if low is None:
                continue
            own = slice(start, start + rank)
            left[..., own].copy_(low.left)
            right[..., own, :].copy_(low.right)
            if low.scale is not None:  # of matrices alone
                scale.copy_(low.scale)
                _ = left[:, own].mul_(scale[:, None]) if along == 0 else right[own].mul_(scale)
            start += rank
        dora = any(low is not None and low.scale is not None for low in lows)
        owners = torch.repeat_interleave(torch.arange(len(lows)), torch.tensor(ranks))
        parts = (left.to(device), right.to(device), owners.to(device))
        kept = source.base.kept(name, device)
        return cls(kept, *parts, scales.to(device) if dora else None, along)

    @property
    def base(self) -> Tensor:
        """W, in the dtype as which it counts."""
        kept = self.kept
        return kept if isinstance(kept, Tensor) else kept().to(self.left.device)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        kept = self.kept.nbytes if isinstance(self.kept, Tensor) else 0
        return kept + self.left.nbytes + self.right.nbytes

    def factors(self, vector: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
        """L and R of Σ a_i (the change of member i); members of zero weight are not read.

        Args:
            vector: `k`, the coefficients a.
            apart: Average L and R by themselves; members must have one rank.
        """
        if apart:
            used, k = vector != 0, len(vector)
            left = self.left.unflatten(-1, (k, -1))[..., used, :]
            right = self.right.unflatten(-2, (k, -1))[..., used, :, :]
            a = vector[used]
            mixed = torch.einsum("...nkr,k->...nr", left, a)
            return mixed, torch.einsum("...krm,k->...rm", right, a)
        coefficients = vector[self.owners]
        used = coefficients != 0
        if bool(used.all()):
            return self.left * coefficients, self.right
        return self.left[..., used] * coefficients[used], self.right[..., used, :]

    def stretch(self, vector: Tensor, total: float) -> Tensor | float:
        """What W is multiplied by: Σ a_i, or a vector over the outputs with DoRA."""
        if self.scales is None:
            return total
        used = vector != 0
        sums = torch.mv(self.scales[used].t(), vector[used])
        return sums[:, None] if self.along == 0 else sums

    def mixed(
        self, vector: Tensor, total: float, apart: bool, out: Tensor | None = None
    ) -> Tensor:
        """Σ a_i θ_i, in the dtype of sums; into `out` if it is of that dtype."""
        left, right = self.factors(vector, apart)
        stretch = self.stretch(vector, total)
        stored = self.base
        base = stored.to(self.left.dtype)
        exact = stored.dtype == base.dtype  # else the caller rounds to the stored dtype
        if isinstance(stretch, Tensor) or stretch != 1.0:
            base = base * stretch
        add = torch.addmm if base.dim() == 2 else torch.baddbmm
        if exact and out is not None and out.dtype == base.dtype and out.is_contiguous():
            return add(base, left, right, out=out)
        return add(base, left, right)

    def products(self, gradient: Tensor, k: int) -> Tensor:
        """<G, θ_i> of every member, `k`."""
        wide = gradient.to(self.left.dtype)
        aligned = wide * self.base.to(wide)
        if self.scales is None:
            found = aligned.sum(dtype=torch.float64).expand(k).clone()
        else:
            found = (self.scales @ aligned.sum(dim=1 - self.along)).double()
        ranks = ((self.left.mT @ wide) * self.right).sum(dim=-1, dtype=torch.float64)
        for each in ranks.view(-1, len(self.owners)):  # expert by expert
            found.index_add_(0, self.owners, each)
        return found
