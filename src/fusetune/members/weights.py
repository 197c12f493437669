"""Fusion weights: a point of the simplex, checked once and then trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """One weight per member, each ≥ 0, summing to 1 (w of the papers).

    Attributes:
        values: k floats, in the order of the members.

    Raises:
        ValueError: If a weight is negative or not finite, or the sum is not 1.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        total = math.fsum(self.values)
        if (
            not self.values
            or not all(math.isfinite(v) and v >= 0.0 for v in self.values)
            or not math.isclose(total, 1.0, abs_tol=TOLERANCE)
        ):
            raise ValueError(
                "Fusion weights must be finite, non-negative and sum to 1; "
                f"got {self.values}, which sum to {total!r}."
            )

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def one_hot(cls, index: int, k: int) -> FusionWeights:
        """All weight on member `index` of `k`."""
        return cls(tuple(1.0 if i == index else 0.0 for i in range(k)))

    @classmethod
    def uniform(cls, k: int, subset: Iterable[int] | None = None) -> FusionWeights:
        """The plain average of all `k` members, or of a subset of their indices."""
        chosen = frozenset(range(k) if subset is None else subset)
        return cls(tuple(1.0 / len(chosen) if i in chosen else 0.0 for i in range(k)))

    @classmethod
    def normalised(cls, raw: Iterable[float]) -> FusionWeights:
        """Non-negative numbers divided by their sum; tiny negatives count as zero."""
        clipped = [max(0.0, float(v)) for v in raw]
        total = math.fsum(clipped)
        return cls(tuple(v / total for v in clipped))
