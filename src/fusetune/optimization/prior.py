"""What outputs say of f(w) before θ̄(w) is evaluated, and points to start with.

Notation: n evaluated points, b points, k members, m objectives; W: `n x k`, Y: `n x m`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fusetune.objective import Objective
from fusetune.optimization import fusion, simplex
from fusetune.optimization.composite import MOST_AVERAGES, OutputModel
from fusetune.optimization.pareto import Values
from fusetune.optimization.simplex import Points
from fusetune.optimization.thinning import informative

LEAST_POINTS = 5
"""So many averages have to be evaluated before a prior is judged by them."""

LEAST_CORRELATION = 0.2
"""Rank correlation below which a prior is given up, by more than the standard error of one."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well a prior ranks what was evaluated.

    Attributes:
        correlation: Spearman's; 0 if the objective is unknown to it or constant.
        points: How many were ranked.
    """

    correlation: float
    points: int

    @property
    def trusted(self) -> bool:
        """Whether the prior may lead.

        Over n points a rank correlation is uncertain by 1/√(n − 1): of a prior that has 0.6,
        six points say less than 0.2 in a quarter of all draws. One that is trusted wrongly does
        little harm, as its factor is fitted with the process.
        """
        error = 1.0 / math.sqrt(max(self.points - 1, 1))
        return self.correlation != 0.0 and self.correlation >= LEAST_CORRELATION - error


Predicted = Mapping[str, NDArray[np.float64]]
"""Objectives by name, one value per point each, natural sign; some may be missing."""


@dataclass(frozen=True)
class Prior:
    """Predicts the objectives of any w, at next to no cost.

    Attributes:
        predict: `b x k` weights → their objectives; NaN where nothing can be said. A pure
            function.
        starts: `s x k`; points that promise much by the prior alone.
        learn: Evaluated averages, `t x k` → a model of the outputs of all others, from
            theirs; it may know fewer of them. None if outputs are unknown or say nothing of
            objectives: then the prediction is the mean function of the processes.
    """

    predict: Callable[[Points], Predicted]
    starts: Points
    learn: Callable[[Points], OutputModel[Predicted] | None] | None = None

    def outputs(
        self, W: Points, Y: Values, objectives: Sequence[Objective]
    ) -> OutputModel[Values] | None:
        """The model of the outputs that all evaluations so far lead to.

        Args:
            W: `n x k`; what was evaluated.
            Y: `n x m`; the values, to be maximised.
            objectives: m of them.
        """
        averages = np.flatnonzero(W.max(axis=1, initial=0.0) < 1.0)
        if self.learn is None or len(averages) == 0:
            return None
        good = fusion.scale(W, Y).sum(axis=1)[averages]
        learned = self.learn(W[averages[informative(good, MOST_AVERAGES)]])
        return None if learned is None else _Outputs(learned, tuple(objectives))

    def values(self, points: Points, objectives: Sequence[Objective]) -> Values:
        """The predictions as `b x m`, to be maximised; 0 for objectives that are missing."""
        return _maximised(self.predict(points), objectives, np.zeros(len(points)))

    def usable_starts(self) -> Points:
        """The starts of which something can be said."""
        starts = simplex.without_negligible(np.asarray(self.starts, dtype=np.float64))
        if len(starts) == 0:
            return starts
        values = np.column_stack(list(self.predict(starts).values()))
        return starts[np.isfinite(values).all(axis=1)]

    def mean(
        self,
        W: Points,
        Y: Values,
        objectives: Sequence[Objective],
        scouts: Points | None = None,
    ) -> Callable[[Points], Values] | None:
        """The mean function, to be maximised: `b x k` → `b x m`.

        It is 0 for the objectives that the prior does not rank well (`correlations`); None
        if those are all.
        """
        trusted = [r.trusted for r in self.correlations(W, Y, objectives, scouts)]
        if not any(trusted):
            return None

        def mean(points: Points) -> Values:
            return np.where(trusted, self.values(points, objectives), 0.0)

        return mean

    def correlations(
        self,
        W: Points,
        Y: Values,
        objectives: Sequence[Objective],
        scouts: Points | None = None,
    ) -> list[Ranking]:
        """Spearman's rank correlation of predicted and observed values, m of them.

        Over the scouts and the plain averages of two or more members among the evaluated
        points: the uniform average and the steps of the greedy soup. Single members say
        nothing, for there an ensemble is exact, and points that were chosen because of the
        prior are too much alike to it. An objective that the prior does not know, or takes for
        constant, has 0; one that is constant has 1. With fewer than `LEAST_POINTS` points all
        have 1: nothing speaks against the prior yet.
        """
        subsets = [simplex.subset_of(w) for w in W]
        plain = np.array([s is not None and len(s) > 1 for s in subsets], dtype=bool)
        if scouts is not None:
            plain |= simplex.distance_to_nearest(W, scouts) < 1e-9
        rows = np.flatnonzero(plain).tolist()
        if not rows:
            return [Ranking(1.0, 0)] * len(objectives)
        predicted = self.values(W[rows], objectives)
        finite = np.isfinite(predicted).all(axis=1)
        predicted, observed = predicted[finite], Y[rows][finite]
        if len(predicted) < LEAST_POINTS:
            return [Ranking(1.0, len(predicted))] * len(objectives)
        pairs = zip(predicted.T, observed.T, strict=True)
        return [Ranking(spearman(p, y), len(y)) for p, y in pairs]


@dataclass(frozen=True)
class _Outputs:
    """A model of outputs whose objectives are those of the search, to be maximised."""

    learned: OutputModel[Predicted]
    objectives: tuple[Objective, ...]

    @property
    def weights(self) -> Points:
        return self.learned.weights

    def predict(self, points: Points) -> Values:
        return self._maximised(self.learned.predict(points), len(points))

    def deviation(self, points: Points, pending: Points | None = None) -> NDArray[np.float64]:
        return self.learned.deviation(points, pending)

    def left_out(self) -> tuple[Values, NDArray[np.float64]]:
        found, deviation = self.learned.left_out()
        return self._maximised(found, len(deviation)), deviation

    def _maximised(self, found: Predicted, b: int) -> Values:
        return _maximised(found, self.objectives, np.full(b, np.nan))


def _maximised(
    found: Predicted, objectives: Sequence[Objective], missing: NDArray[np.float64]
) -> Values:
    return np.column_stack([o.sign * found.get(o.name, missing) for o in objectives])


MakePrior = Callable[[tuple[int, ...]], Prior]
"""Indices of the members that were evaluated without failing, one or more → the prior."""


def spearman(predicted: Points, observed: Points) -> float:
    """Rank correlation; 1 if all that was observed is equal, 0 if all that was predicted is."""
    if np.ptp(observed) == 0.0:
        return 1.0
    if np.ptp(predicted) == 0.0:
        return 0.0
    return float(np.corrcoef(rankdata(predicted), rankdata(observed))[0, 1])
