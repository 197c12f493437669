"""Where weights by layer can go from one global w; no method itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusetune.members.layers import LayerWeights
from fusetune.members.mixing import groups_of
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.choices import Evaluated
from fusetune.objective import Objective, primary_index
from fusetune.optimization import selection, simplex

APART = 0.2
"""Least L1 distance of a mixture worth going to from the start, and from another one: a tenth
of the weight in other hands."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps `D` = G·J, as in `optimization.layers` → weights by layer.

    Attributes:
        start: w of all groups before any step.
        goals: J mixtures to go towards, in the order of their promise.
        groups: Numbers of the G groups of layers that take part.
        parts: Into how many parts the stack is cut.
    """

    start: FusionWeights
    goals: tuple[FusionWeights, ...]
    groups: tuple[int, ...]
    parts: int

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.groups) * len(self.goals)

    def point(self, step: NDArray[np.float64]) -> FusionWeights | LayerWeights:
        """The weights after a step; one w if all groups come to have the same."""
        found = [self.start] * (self.parts + 2)
        goals = np.array([goal.values for goal in self.goals])
        for group, way in zip(self.groups, step.reshape(len(self.groups), -1), strict=True):
            if way.any():  # else the start, to the last bit
                raw = (1.0 - way.sum()) * np.array(self.start.values) + way @ goals
                kept = simplex.without_negligible(np.maximum(raw, 0.0))
                found[group] = FusionWeights.normalised(kept)
        point = LayerWeights(tuple(found))
        return point if point.one is None else point.one


def averaged_groups(pool: MemberPool, parts: int) -> tuple[int, ...]:
    """The groups of layers in which the members differ, by number."""
    groups = groups_of(pool, parts)
    found = {
        groups[name]
        for name, info in pool.tensors.items()
        if info.dtype.is_floating_point and info.numel and name not in pool.constant
    }
    return tuple(sorted(found))


def targets(
    start: FusionWeights, seen: Evaluated, objectives: Sequence[Objective]
) -> list[FusionWeights]:
    """Mixtures that a global search found good in some way, each far enough from the others.

    Lowest loss, best single member, best metric, the other members, best first, and the
    uniform average: a group of layers may want what the whole model does not.
    """
    members = np.flatnonzero(seen.W.max(axis=1) == 1.0)
    primary = seen.Y[members, primary_index(objectives)]
    ranked = members[np.lexsort((-seen.Y[members, 0], -primary))]
    uniform = np.flatnonzero(np.isclose(seen.W, 1.0 / len(start), rtol=0.0).all(axis=1))
    metric, loss = selection.best(seen.Y, objectives), int(seen.Y[:, 0].argmax())
    rows = [loss, *ranked[:1].tolist(), metric, *ranked[1:].tolist(), *uniform[:1].tolist()]
    found: list[FusionWeights] = []
    for row in rows:
        others = np.array([w.values for w in (start, *found)])
        if simplex.distance_to_nearest(seen.W[[row]], others)[0] > APART:
            found.append(FusionWeights(tuple(seen.W[row].tolist())))
    return found
