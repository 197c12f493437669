"""What is optimised: a name and a direction. Signs live here and nowhere else.

Everywhere in fusetune values have their natural sign and unit; `optimization` alone
maximises, and converts on its border with `to_maximise` and `to_natural`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One quantity to be optimised.

    Attributes:
        name: Key of the value in an evaluation: "loss", "f1", ….
        direction: "minimize" or "maximize", as in Optuna.
    """

    name: str
    direction: Direction

    @property
    def sign(self) -> float:
        """+1 for a maximised objective, −1 for a minimised one."""
        return 1.0 if self.direction == "maximize" else -1.0

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`, both in natural sign."""
        return self.sign * a > self.sign * b


LOSS = Objective("loss", "minimize")


def primary_index(objectives: Sequence[Objective]) -> int:
    """Which objective decides: the first metric, or the loss if it stands alone."""
    return min(1, len(objectives) - 1)


def better(
    a: Mapping[str, float], b: Mapping[str, float], objectives: Sequence[Objective]
) -> bool:
    """Whether values `a` beat `b`: in the primary objective, or else in the loss.

    The loss is the first of the objectives. Where there is none, as in a caller's own
    objectives, the first one decides in its place.
    """
    for objective in (objectives[primary_index(objectives)], objectives[0]):
        x, y = a[objective.name], b[objective.name]
        if x != y:
            return objective.better(x, y)
    return False


def to_maximise(
    values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]
) -> NDArray[np.float64]:
    """Natural values as an `n x m` float64 matrix whose every column is maximised.

    Args:
        values: One mapping from objective name to value per evaluation, n in all.
        objectives: The m objectives, in the order of the columns.
    """
    rows = [[o.sign * float(v[o.name]) for o in objectives] for v in values]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def to_natural(
    maximised: NDArray[np.float64], objectives: Sequence[Objective]
) -> list[dict[str, float]]:
    """The inverse of `to_maximise`: one mapping per row of an `n x m` matrix."""
    return [
        {o.name: o.sign * float(y) for o, y in zip(objectives, row, strict=True)}
        for row in maximised
    ]
