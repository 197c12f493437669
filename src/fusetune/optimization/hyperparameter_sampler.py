"""The sampler for λ: a thin shell around pure functions; see `recording`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from fusetune.objective import Objective
from fusetune.optimization import hyperparameters
from fusetune.optimization.acquisition import Name
from fusetune.optimization.cube import Cube
from fusetune.optimization.recording import NUMERICAL, Proposal, RecordingSampler


class HyperparameterSampler(RecordingSampler):
    """Proposes λ: scrambled Sobol starts, then BoTorch's GP with LogEI or UCB.

    A pruned trial counts with the best of its intermediate values, a failed one as the worst
    seen, so that its neighbourhood is avoided.

    Args:
        space: Parameter name → distribution.
        objective: What is optimised; its direction decides about signs.
        seed: Of the whole study.
        starts: Trials before the model takes over.
        given: λ that the first trials take, before any Sobol point.
        acquisition: "logei" (NeurIPS version of the method) or "ucb" (workshop version).
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        objective: Objective,
        *,
        seed: int,
        starts: int = 3,
        given: Sequence[Mapping[str, Any]] = (),
        acquisition: Name = "logei",
    ) -> None:
        super().__init__(space, seed)
        self.given = tuple(given)
        self.objective = objective
        self.starts = starts
        self.acquisition = acquisition
        self._cube = Cube(space)

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        """Trials up to `starts` take Sobol points, later ones what the model suggests."""
        if number < len(self.given):
            return Proposal({n: self.given[number][n] for n in self._cube.space}, "given")
        known = [t for t in trials if self._cube.space.keys() <= t.params.keys()]
        finished = [t for t in known if t.state.is_finished()]
        pending = [t for t in known if t.state == TrialState.RUNNING]
        values = np.array([self._value(t) for t in finished], dtype=np.float64)
        values[np.isnan(values)] = np.nanmin(values) if np.isfinite(values).any() else np.nan
        X, waiting = self._encode(finished), self._encode(pending)
        if number >= self.starts and np.isfinite(values).any():
            try:
                point = hyperparameters.suggest(
                    self._cube,
                    X,
                    values,
                    seed=(self.seed, number),
                    name=self.acquisition,
                    pending=waiting,
                )
                return Proposal(self._cube.decode(point), "model")
            except NUMERICAL as error:
                fallback = f"{type(error).__name__}: {error}"
        else:
            fallback = ""
        point = hyperparameters.start(
            self._cube, number, seed=self.seed, taken=np.vstack([X, waiting])
        )
        return Proposal(self._cube.decode(point), "random" if fallback else "sobol", fallback)

    def _value(self, trial: FrozenTrial) -> float:
        """To be maximised; NaN if the trial has none."""
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            return self.objective.sign * trial.value
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            return max(self.objective.sign * v for v in trial.intermediate_values.values())
        return math.nan

    def _encode(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        rows = [self._cube.encode(t.params) for t in trials]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self._cube.dimension)
