"""`loss <= 0.5, max f1`: bounds that w† has to keep, and what is best among those that do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError, closest
from fusetune.objective import Objective
from fusetune.optimization.pareto import Values

_NAME = r"\w[\w./-]*"  # of a metric, or of the harness's as arc_easy/acc_norm

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
    def parse(
        cls, text: str, where: str = "fuse.constraint", names: Iterable[str] = ()
    ) -> Constraint:
        """Read a constraint; nothing in it is ever executed.

        Args:
            text: Of the user.
            where: What messages call it.
            names: Of objectives, where they are known: any text is a name then, with commas and
                signs in it too.

        Raises:
            RecipeError: If it is not `bounds and one goal`.
        """
        bounds: list[Bound] = []
        goals: list[tuple[str, str]] = []
        pattern = _part(names)
        start = 0
        while start <= len(text):
            found = pattern.match(text, start)
            if found is None:
                rest = text[start:].partition(",")[0].strip()
                raise RecipeError(f"{where} takes {GRAMMAR}; {rest!r} is neither.")
            if found["direction"]:
                goals.append((found["direction"], found["goal"]))
            else:
                limit = _number(found["limit"], found[0].strip(" ,"), where)
                bounds.append(Bound(found["bound"], found["sign"] == "<=", limit))
            start = found.end() + (not found["end"])  # past the text after its last part
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


def _part(names: Iterable[str]) -> re.Pattern[str]:
    """One bound or goal with the comma, or the end of the text, behind it."""
    # The longest known name first: of "f1" and "f1 macro" the one that is meant.
    known = [re.escape(name) for name in sorted(names, key=len, reverse=True) if name.strip()]
    name = "|".join([*known, _NAME])
    return re.compile(
        rf"\s*(?:(?P<direction>max|min)\s+(?P<goal>{name})"
        rf"|(?P<bound>{name})\s*(?P<sign><=|>=)\s*(?P<limit>[^\s,]+))\s*(?P<end>,|$)"
    )


def _number(text: str, part: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{where}: {part!r} needs a number after its sign.")
    return value
