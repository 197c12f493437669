"""Hyper-parameters as points of the unit cube, and back.

Every Optuna distribution takes one coordinate, a categorical one a coordinate per choice
(one-hot). Integers and stepped floats own equal intervals of theirs, on the logarithmic
scale if they are logarithmic; `snap` moves a point to the middle of what it stands for, so
that the surrogate sees what will be evaluated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Array = NDArray[np.float64]
Params = dict[str, Any]


class Cube:
    """The unit cube over a search space.

    Args:
        space: Parameter name → distribution. Parameters with a single value take no part.

    Raises:
        TypeError: If a distribution is of no known kind.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = {name: d for name, d in space.items() if not d.single()}
        for name, d in self.space.items():
            known = (FloatDistribution, IntDistribution, CategoricalDistribution)
            if not isinstance(d, known):
                raise TypeError(f"{name}: a distribution of Optuna is needed; got {d!r}.")
        widths = [_width(d) for d in self.space.values()]
        ends = np.cumsum([0, *widths])
        self._columns = {
            name: slice(int(a), int(b))
            for name, a, b in zip(self.space, ends[:-1], ends[1:], strict=True)
        }
        self.dimension = int(ends[-1])

    @property
    def discrete(self) -> NDArray[np.bool_]:
        """`d`; which coordinates take few values and cannot follow a gradient."""
        flags = np.zeros(self.dimension, dtype=bool)
        for name, d in self.space.items():
            flags[self._columns[name]] = not isinstance(d, FloatDistribution) or bool(d.step)
        return flags

    def encode(self, params: Mapping[str, Any]) -> Array:
        """The point of a set of parameter values, `d`."""
        point = np.zeros(self.dimension)
        for name, d in self.space.items():
            columns = self._columns[name]
            if isinstance(d, CategoricalDistribution):
                point[columns.start + int(d.to_internal_repr(params[name]))] = 1.0
            else:
                low, high = _interval(d)
                value = math.log(params[name]) if _is_log(d) else float(params[name])
                point[columns] = min(1.0, max(0.0, (value - low) / (high - low)))
        return point

    def decode(self, point: Array) -> Params:
        """The parameter values for which a point stands: the nearest that are allowed."""
        return {name: _value(d, point[self._columns[name]]) for name, d in self.space.items()}

    def snap(self, points: Array) -> Array:
        """Each of `n x d` points moved to the place of the values it stands for."""
        rows = [self.encode(self.decode(point)) for point in points]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.dimension)

    def enumerate(self, limit: int) -> Array | None:
        """Every point of an all-discrete space, `n x d`; None if more than `limit`."""
        if not self.discrete.all():
            return None
        grids = [_allowed(d) for d in self.space.values()]
        if math.prod(len(grid) for grid in grids) > limit:
            return None
        rows = [
            self.encode(dict(zip(self.space, row, strict=True)))
            for row in itertools.product(*grids)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.dimension)


def _allowed(d: BaseDistribution) -> Sequence[Any]:
    """The values of a discrete distribution; lazily, for there may be very many."""
    if isinstance(d, CategoricalDistribution):
        return d.choices
    if isinstance(d, IntDistribution):
        return range(d.low, d.high + 1, d.step)
    assert isinstance(d, FloatDistribution)
    assert d.step is not None
    return [d.low + i * d.step for i in range(round((d.high - d.low) / d.step) + 1)]


def _width(d: BaseDistribution) -> int:
    return len(d.choices) if isinstance(d, CategoricalDistribution) else 1


def _is_log(d: BaseDistribution) -> bool:
    return isinstance(d, FloatDistribution | IntDistribution) and d.log


def _interval(d: BaseDistribution) -> tuple[float, float]:
    """What 0 and 1 mean: half a step beyond the ends, on the distribution's scale."""
    assert isinstance(d, FloatDistribution | IntDistribution)
    half = (d.step or 0.0) / 2.0
    low, high = d.low - half, d.high + half
    return (math.log(low), math.log(high)) if d.log else (low, high)


def _value(d: BaseDistribution, coordinates: Array) -> Any:
    if isinstance(d, CategoricalDistribution):
        return d.choices[int(coordinates.argmax())]
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = _interval(d)
    value = low + float(coordinates[0]) * (high - low)
    value = math.exp(value) if d.log else value
    if d.step is not None:
        steps = round((value - d.low) / d.step)
        value = d.low + max(0, min(steps, round((d.high - d.low) / d.step))) * d.step
    value = max(d.low, min(d.high, value))
    return int(value) if isinstance(d, IntDistribution) else float(value)
