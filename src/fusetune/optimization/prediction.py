"""What is expected of points that nobody has evaluated, objective by objective.

Notation: n evaluations, b points, k members, m objectives; W: `n x k`; `scaled`: `n x m`,
values with 0 for the reference point and the members' range as unit (`fusion.scale`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.optimization import process
from fusetune.optimization.composite import LEAST_AVERAGES, Composite
from fusetune.optimization.pareto import Values
from fusetune.optimization.process import Process
from fusetune.optimization.simplex import Points

MeanFunction = Callable[[Points], Values]
"""`b x k` points → `b x m`, what is expected of them, to be maximised; NaN: no point to try."""


class Prediction:
    """Independent normal distributions of the m objectives at any point.

    Each objective is predicted from a model of the outputs, if there is one that knows it and
    that a Gaussian process on its values does not outdo (`Composite.outdone`); else by that.

    Args:
        W: Points evaluated, n ≥ 2.
        scaled: Their values.
        kernel: Of the processes.
        mean: Their mean function, scaled; constant if None.
        composite: From a model of the outputs, if there is one.
        averages: The rows of W that the model knows, `t`, in its order.

    Attributes:
        from_outputs: `m`; the objectives that are predicted from the outputs.

    Raises:
        torch.linalg.LinAlgError: If a process cannot be fitted.
    """

    def __init__(
        self,
        W: Points,
        scaled: Values,
        kernel: process.Kernel,
        mean: MeanFunction | None = None,
        composite: Composite | None = None,
        averages: NDArray[np.int64] | None = None,
    ) -> None:
        self._mean, self._composite = mean, composite
        self._pending: Points | None = None
        self._X, self._y = torch.as_tensor(W), torch.as_tensor(scaled)
        self._prior = self._prior_at(W, self._y)
        self.from_outputs = np.zeros(scaled.shape[1], dtype=bool)
        self._processes: list[Process] = []
        if composite is not None:
            self.from_outputs = np.isfinite(composite.densities).all(axis=0)
            if len(composite.densities) < LEAST_AVERAGES and self.from_outputs.all():
                return  # nothing is left to the processes
        self._processes = process.fit(self._X, self._y, kernel, self._prior)
        if composite is not None:
            rows = torch.as_tensor(averages)
            others = torch.stack([p.left_out(rows) for p in self._processes], dim=1)
            self.from_outputs &= ~composite.outdone(others.numpy())

    def __call__(self, points: Points) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, `b x m` each; NaN: no point to try."""
        if self._composite is None or not self.from_outputs.any():
            return self._by_processes(points)
        found, uncertain = map(torch.as_tensor, self._composite(points, self._pending))
        if self.from_outputs.all():
            return found, uncertain
        mean, deviation = self._by_processes(points)
        chosen = torch.as_tensor(self.from_outputs)
        return torch.where(chosen, found, mean), torch.where(chosen, uncertain, deviation)

    def add_pending(self, points: Points, rng: np.random.Generator) -> Tensor:
        """Count points with values drawn from what is believed of them; gives these, `p x m`.

        Args:
            points: `p x k`; under evaluation.
            rng: Of the draws.
        """
        expected, deviation = self(points)
        chance = torch.as_tensor(rng.standard_normal(expected.shape))
        believed = expected + deviation * chance
        self._pending = points
        if self._processes:
            more = self._prior_at(points, believed)
            X = torch.cat([self._X, torch.as_tensor(points)])
            y = torch.cat([self._y, believed])
            prior = (
                None if self._prior is None or more is None else torch.cat([self._prior, more])
            )
            self._processes = [
                Process(X, y[:, j], p.hyperparameters, p.kernel, process.column(prior, j))
                for j, p in enumerate(self._processes)
            ]
        return believed

    def _prior_at(self, points: Points, otherwise: Tensor | None = None) -> Tensor | None:
        """The mean function's values; where it says nothing, those that are given instead."""
        if self._mean is None:
            return None
        values = torch.as_tensor(self._mean(points))
        return values if otherwise is None else torch.where(values.isnan(), otherwise, values)

    def _by_processes(self, points: Points) -> tuple[Tensor, Tensor]:
        X, prior = torch.as_tensor(points), self._prior_at(points)
        r = process.distances(X, self._processes[0].W, exact=False)
        parts = [
            p.predict(X, process.column(prior, j), r) for j, p in enumerate(self._processes)
        ]
        mean = torch.stack([m for m, _ in parts], dim=1)
        return mean, torch.stack([v for _, v in parts], dim=1).sqrt()
