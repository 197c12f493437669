"""The value of one w: f(w), what each example contributed, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusetune.tasks.task import Outputs


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Attributes:
    values: Objective name → value over the whole split, natural sign.
    outputs: Per-example outcomes, for intervals and pairing; None when the
        evaluation is a user's own function.
    seconds: Wall time of averaging and evaluating.
    averaging: Wall time of averaging alone, in `seconds`.
    read: Bytes of members that averaging read.
    """

    values: Mapping[str, float]
    outputs: Outputs | None
    seconds: float
    averaging: float = 0.0
    read: int = 0
