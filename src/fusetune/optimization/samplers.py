"""The sampler for w: a thin shell around pure functions; see `recording`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Trial
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from fusetune.members.weights import FusionWeights
from fusetune.objective import Objective, primary_index, to_maximise
from fusetune.optimization import fusion, simplex
from fusetune.optimization.greedy import GreedySoup, Score, Subset
from fusetune.optimization.pareto import Values
from fusetune.optimization.prior import MakePrior, Prior
from fusetune.optimization.recording import (
    NUMERICAL,
    SUGGEST_SECONDS,
    Proposal,
    RecordingSampler,
)
from fusetune.optimization.simplex import Points

__all__ = [
    "SUGGEST_SECONDS",
    "FusionSampler",
    "ask_weights",
    "weight_names",
    "weights_of",
]

SCOUTS = 5
"""Points about the centre that every search begins with."""

SAME = 1e-3
"""L1 distance below which two points are the same."""

WITHOUT_VALUE = (TrialState.FAIL, TrialState.PRUNED)  # neither is asked for again


class FusionSampler(RecordingSampler):
    """Proposes w, parameters w0 … w(k−1) that sum to 1, in this order:

    every single member; the uniform average; the points that a prior names; `SCOUTS` points
    about the centre, unless the prior learns of outputs; then what `fusion.suggest` finds. At
    the end of the budget the model's points take turns with the averages that the greedy soup
    asks for, so that the search knows what it has to surpass: 2 k + 1 trials do for all.

    Args:
        k: Number of members.
        objectives: What is optimised; the first metric is the primary one.
        seed: Of the whole study.
        settings: How to search.
        primary_only: Whether the primary objective alone is searched for; the others are
            then recorded and nothing more.
        prior: Makes the prior from the indices of the members that were evaluated without
            failing, one or more; asked for once that is known of all of them. It is given up,
            objective by objective, where it does not predict (`doubts`).
        further: Further sets of members whose averages come after the uniform one.
        given: Starting points of the caller's, evaluated after the uniform average.
        budget: Trials in all; if that is not known, the greedy soup is left out.
    """

    def __init__(
        self,
        k: int,
        objectives: Sequence[Objective],
        *,
        seed: int,
        settings: fusion.Settings | None = None,
        primary_only: bool = False,
        prior: MakePrior | None = None,
        further: Sequence[Subset] = (),
        given: Sequence[FusionWeights] = (),
        budget: int | None = None,
    ) -> None:
        super().__init__({name: FloatDistribution(0.0, 1.0) for name in weight_names(k)}, seed)
        self.k = k
        self.objectives = tuple(objectives)
        self.settings = settings
        self.primary_only = primary_only
        self._make_prior = prior
        self._further = tuple(further)
        self._given = [np.array(w.values, dtype=np.float64) for w in given]
        self._budget = budget
        left = SCOUTS if budget is None else budget - 2 * k - 1  # k - 1 are the soup's
        self._centre = simplex.about_the_centre(SCOUTS, k, seed)[: max(left, 0)]
        self._priors: dict[tuple[int, ...], Prior] = {}

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        """The first starting point that no trial has taken, or else the model's point."""
        known = [t for t in trials if self.space.keys() <= t.params.keys()]
        done = [t for t in known if t.state == TrialState.COMPLETE]
        pending = _weights([t for t in known if t.state == TrialState.RUNNING], self.k)
        failed = _weights([t for t in known if t.state in WITHOUT_VALUE], self.k)
        W = _weights(done, self.k)
        Y = self._values(done)
        everywhere = np.vstack([W, pending, failed])
        subsets = [simplex.subset_of(w) for w in everywhere]

        start = next((s for s in self._starts() if s not in subsets), None)
        if start is not None:
            origin = "member" if len(start) == 1 else "uniform"
            return Proposal(_params(simplex.uniform_over(start, self.k)), origin)
        for w in self._given:
            if simplex.distance_to_nearest(w[None], everywhere)[0] > SAME:
                return Proposal(_params(w), "given")
        prior = self.prior(known)
        for w in prior.usable_starts() if prior is not None else ():
            if simplex.distance_to_nearest(w[None], everywhere)[0] > SAME:
                return Proposal(_params(w), "prior")
        for w in self._scouts(failed, prior):
            if simplex.distance_to_nearest(w[None], everywhere)[0] > SAME:
                return Proposal(_params(w), "sobol")
        steps = self.k - 1 - (sum(s is not None for s in subsets) - len(self._starts()))
        if self._budget is not None and 2 * steps >= self._budget - number:
            soup = self._greedy(W, Y, failed)
            if soup is not None and soup not in subsets:  # else under evaluation right now
                return Proposal(_params(simplex.uniform_over(soup, self.k)), "greedy")
        return self._model(number, W, Y, pending, failed, prior)

    def prior(self, trials: Sequence[FrozenTrial]) -> Prior | None:
        """The prior after these trials; None without one, and before all members are known."""
        if self._make_prior is None:
            return None
        asked = {simplex.subset_of(w) for w in _weights(trials, self.k)}
        W = _weights([t for t in trials if t.state == TrialState.COMPLETE], self.k)
        pending = _weights([t for t in trials if not t.state.is_finished()], self.k)
        found = tuple(i for i in range(self.k) if (W[:, i] == 1.0).any())
        late = (pending.max(axis=1, initial=0.0) == 1.0).any()
        if not found or late or not asked.issuperset(self._starts()[: self.k]):
            return None
        if found not in self._priors:
            self._priors[found] = self._make_prior(found)
        return self._priors[found]

    def doubts(self, trials: Sequence[FrozenTrial]) -> dict[str, str]:
        """Where the prior does not predict: name of the objective → how that shows."""
        known = [t for t in trials if self.space.keys() <= t.params.keys()]
        prior = self.prior(known)
        if prior is None:
            return {}
        done = [t for t in known if t.state == TrialState.COMPLETE]
        W, Y = _weights(done, self.k), self._values(done)
        failed = _weights([t for t in known if t.state in WITHOUT_VALUE], self.k)
        try:
            doubted = self._doubted(W, Y, failed, prior)
        except NUMERICAL:  # the trials that this cost say so themselves
            doubted = {}
        predicted = prior.predict(np.full((1, self.k), 1.0 / self.k))
        return {name: why for name, why in doubted.items() if name in predicted}

    def _doubted(self, W: Points, Y: Values, failed: Points, prior: Prior) -> dict[str, str]:
        names = [o.name for o in self.objectives]
        outputs = prior.outputs(W, Y, self.objectives)
        if outputs is not None:
            used = fusion.from_outputs(W, Y, outputs, self.settings)
            averages = len(outputs.weights)
            why = f"a process on its values alone predicts {averages} averages better"
            return {name: why for name, right in zip(names, used, strict=True) if not right}
        found = prior.correlations(W, Y, self.objectives, self._scouts(failed, prior))
        return {
            name: f"rank correlation {ranking.correlation:.2f} over {ranking.points}"
            for name, ranking in zip(names, found, strict=True)
            if not ranking.trusted
        }

    def _scouts(self, failed: Points, prior: Prior | None) -> Points:
        """Points about the centre, without members that failed.

        A process on values needs them, to see more than corners and faces, and so does the
        judgement of a prior; a model of outputs is right about the centre without.
        """
        if prior is not None and prior.learn is not None:
            return np.empty((0, self.k))
        broken = failed[failed.max(axis=1, initial=0.0) == 1.0].any(axis=0)
        points = np.where(broken, 0.0, self._centre)
        points = points[points.sum(axis=1) > 0.0]
        return simplex.without_negligible(points / points.sum(axis=1, keepdims=True))

    def _starts(self) -> list[Subset]:
        everybody = frozenset(range(self.k))
        return [*(frozenset({i}) for i in range(self.k)), everybody, *self._further]

    def _values(self, done: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        names = [o.name for o in self.objectives]
        return to_maximise(
            [dict(zip(names, t.values, strict=True)) for t in done], self.objectives
        )

    def _greedy(self, W: Points, Y: NDArray[np.float64], failed: Points) -> Subset | None:
        primary = primary_index(self.objectives)
        history: dict[Subset | None, Score] = {simplex.subset_of(w): -math.inf for w in failed}
        for w, y in zip(W, Y, strict=True):
            history[simplex.subset_of(w)] = (float(y[primary]), float(y[0]))
        averages = {s: value for s, value in history.items() if s is not None}
        members = [averages.get(frozenset({i}), -math.inf) for i in range(self.k)]
        if all(value == -math.inf for value in members):
            return None
        return GreedySoup(members).next_candidate(averages)

    def _model(
        self,
        number: int,
        W: Points,
        Y: Values,
        pending: Points,
        failed: Points,
        prior: Prior | None,
    ) -> Proposal:
        seed = (self.seed, number)
        fallback = ""
        objectives = self.objectives
        if self.primary_only:
            primary = primary_index(objectives)
            objectives, Y = (objectives[primary],), Y[:, [primary]]
        if len(W) >= 2:
            try:
                w = fusion.suggest(
                    W,
                    Y,
                    seed=seed,
                    pending=pending,
                    avoid=failed,
                    settings=self.settings,
                    **self._knowledge(W, Y, objectives, failed, prior),
                )
                return Proposal(_params(w), "model")
            except NUMERICAL as error:
                fallback = f"{type(error).__name__}: {error}"
        w = simplex.dirichlet(1, self.k, 1.0, np.random.default_rng(seed))[0]
        return Proposal(_params(simplex.without_negligible(w)), "random", fallback)

    def _knowledge(
        self,
        W: Points,
        Y: Values,
        objectives: Sequence[Objective],
        failed: Points,
        prior: Prior | None,
    ) -> dict[str, Any]:
        """What `fusion.suggest` is told besides the values."""
        if prior is None:
            return {}
        outputs = prior.outputs(W, Y, objectives)
        if outputs is not None:
            return {"outputs": outputs, "starts": prior.usable_starts()}
        mean = prior.mean(W, Y, objectives, self._scouts(failed, prior))
        return {"mean": mean, "starts": prior.usable_starts()}


def weight_names(k: int) -> list[str]:
    """The parameter names of k fusion weights."""
    return [f"w{i}" for i in range(k)]


def ask_weights(trial: Trial, k: int) -> FusionWeights:
    """The w that a running trial is to evaluate: the `define` of a fusion study."""
    return FusionWeights(tuple(trial.suggest_float(n, 0.0, 1.0) for n in weight_names(k)))


def weights_of(trial: FrozenTrial) -> FusionWeights:
    """The w of a trial of a fusion study."""
    return FusionWeights(tuple(trial.params[name] for name in weight_names(len(trial.params))))


def _params(w: Points) -> dict[str, float]:
    return dict(zip(weight_names(len(w)), w.tolist(), strict=True))


def _weights(trials: Sequence[FrozenTrial], k: int) -> Points:
    names = weight_names(k)
    rows = [[t.params[name] for name in names] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(len(rows), k)
