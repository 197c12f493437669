"""`loss <= 0.5, max f1`: bounds that w† has to keep, and what is best among those that do."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError, closest
from fusetune.objective import Objective
from fusetune.optimization.pareto import Values

_NAME = r"(?P<name>[A-Za-z_][\w./-]*)"  # of a metric, or of the harness's as arc_easy/acc_norm
_BOUND = re.compile(_NAME + r"\s*(?P<sign><=|>=)\s*(?P<limit>\S+)")
_GOAL = re.compile(r"(?P<direction>max|min)\s+" + _NAME)

GRAMMAR = 'bounds and one goal with commas between, as "loss <= 0.5, max f1"'


@dataclass(frozen=True, slots=True)
class Bound:
    """Attributes:
    name: Of an objective.
    at_most: Whether the limit is an upper one.
    limit: In the objective's own unit and sign.
    """

    name: str
    at_most: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Attributes:
    bounds: All of them have to be kept.
    goal: Name of the objective that decides among what keeps them.
    direction: "max" or "min", the goal's own.
    """

    bounds: tuple[Bound, ...]
    goal: str
    direction: str

    def __str__(self) -> str:
        return ", ".join([*map(str, self.bounds), f"{self.direction} {self.goal}"])

    @classmethod
    def parse(cls, text: str, where: str = "fuse.constraint") -> Constraint:
        """Read a constraint; nothing in it is ever executed.

        Args:
            text: Of the user.
            where: What messages call it.

        Raises:
            RecipeError: If it is not `bounds and one goal`.
        """
        bounds: list[Bound] = []
        goals: list[tuple[str, str]] = []
        for part in (part.strip() for part in text.split(",")):
            if goal := _GOAL.fullmatch(part):
                goals.append((goal["direction"], goal["name"]))
            elif bound := _BOUND.fullmatch(part):
                bounds.append(
                    Bound(
                        bound["name"],
                        bound["sign"] == "<=",
                        _number(bound["limit"], part, where),
                    )
                )
            else:
                raise RecipeError(f"{where} takes {GRAMMAR}; {part!r} is neither.")
        if not bounds or len(goals) != 1:
            raise RecipeError(
                f"{where} takes {GRAMMAR}; {text!r} has {len(bounds)} bounds and "
                f"{len(goals)} goals."
            )
        return cls(tuple(bounds), goals[0][1], goals[0][0])

    def check(self, objectives: Sequence[Objective], where: str = "fuse.constraint") -> None:
        """Compare with what is measured.

        Raises:
            RecipeError: If it names something else, or turns an objective round.
        """
        known = {o.name: o for o in objectives}
        for name in (*(b.name for b in self.bounds), self.goal):
            if name not in known:
                raise RecipeError(
                    f"{where}: no objective {name!r}{closest(name, known)}; "
                    f"known: {', '.join(known)}."
                )
        if not known[self.goal].direction.startswith(self.direction):
            raise RecipeError(
                f"{where}: {self.goal} is to be {known[self.goal].direction}d, "
                f"not {self.direction} {self.goal}."
            )

    def excess(self, Y: Values, objectives: Sequence[Objective]) -> NDArray[np.float64]:
        """How far each row is from keeping all bounds, `n`; 0 if it keeps them.

        The sum over the bounds, each in units of its objective's range over the rows.

        Args:
            Y: `n x m`, to be maximised.
            objectives: The m columns.
        """
        column = {o.name: i for i, o in enumerate(objectives)}
        total = np.zeros(len(Y))
        for bound in self.bounds:
            i = column[bound.name]
            natural = objectives[i].sign * Y[:, i]
            over = natural - bound.limit if bound.at_most else bound.limit - natural
            total += np.maximum(over, 0.0) / (float(np.ptp(natural)) or 1.0)
        return total


def _number(text: str, part: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{where}: {part!r} needs a number after its sign.")
    return value
