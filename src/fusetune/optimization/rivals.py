"""Samplers of Optuna as rivals of `FusionSampler`, at the same number of evaluations.

They know nothing of the simplex: they draw from the box [0, 1]^k, and the point divided by its
sum is w, as in the published scheme. Neither members nor averages are given to them to start
with. `random` alone draws from the simplex itself, uniformly.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import optuna
from optuna import Trial
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from fusetune.errors import RecipeError
from fusetune.members.weights import FusionWeights
from fusetune.objective import Objective, primary_index
from fusetune.optimization import RIVALS, simplex
from fusetune.optimization.recording import SUGGESTION, Proposal, RecordingSampler
from fusetune.optimization.samplers import weight_names
from fusetune.optimization.storage import quiet

_SINGLE = frozenset({"cmaes"})  # can follow one objective only: the primary one


class RivalSampler(RecordingSampler):
    """Proposes points of the box as one of Optuna's samplers does.

    Optuna's samplers keep random states, caches and populations in memory. Here a new one is
    made for every trial, seeded from (seed, trial number), and shown the trials so far in a
    study of its own, so that a resumed study goes on as if it had not stopped.

    Args:
        name: One of `optimization.RIVALS`.
        k: Number of members.
        objectives: What is optimised; `cmaes` follows the primary one only.
        seed: Of the whole study.

    Raises:
        RecipeError: If there is no such rival, or it needs a package that is not installed.
    """

    def __init__(
        self, name: str, k: int, objectives: Sequence[Objective], *, seed: int
    ) -> None:
        super().__init__({name: FloatDistribution(0.0, 1.0) for name in weight_names(k)}, seed)
        require(name)
        self.name = name
        self.k = k
        self.objectives = tuple(objectives)

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        """The point of Optuna's sampler for trial `number`, given the other trials."""
        names = weight_names(self.k)
        if self.name == "random":
            rng = np.random.default_rng((self.seed, number))
            w = simplex.dirichlet(1, self.k, 1.0, rng)[0]
            return Proposal(dict(zip(names, w.tolist(), strict=True)), self.name)
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0] >> 1)
        with quiet():
            study = self._replica(trials, _make(self.name, self.k, seed))
            trial = study.ask()
            params = {name: trial.suggest_float(name, 0.0, 1.0) for name in names}
            memory = study._storage.get_trial(trial._trial_id).system_attrs
        return Proposal(params, self.name, memory=memory)

    def _replica(self, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> optuna.Study:
        """A study in memory with the same trials, reduced to what the sampler follows."""
        columns = list(range(len(self.objectives)))
        if self.name in _SINGLE:
            columns = [primary_index(self.objectives)]
        study = optuna.create_study(
            directions=[self.objectives[i].direction for i in columns], sampler=sampler
        )
        known = [t for t in trials if self.space.keys() <= t.params.keys()]
        for trial in sorted(known, key=lambda t: t.number):
            complete = trial.state == TrialState.COMPLETE
            study.add_trial(
                create_trial(
                    state=trial.state,
                    values=[trial.values[i] for i in columns] if complete else None,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs={
                        key: value
                        for key, value in trial.system_attrs.items()
                        if key != SUGGESTION
                    },
                )
            )
        return study


def require(name: str) -> None:
    """Check that a rival can be used.

    Raises:
        RecipeError: If there is no such rival, or it needs a package that is not installed.
    """
    if name not in RIVALS:
        raise RecipeError(f"fuse.sampler: the rivals are {', '.join(RIVALS)}; got {name!r}.")
    if name == "cmaes":
        try:
            importlib.import_module("cmaes")
        except ImportError:
            raise RecipeError(
                "The sampler cmaes needs the package cmaes, which is not installed.",
                "Run `pip install 'fusetune[cmaes]'`, or choose another sampler.",
            ) from None


def ask_box(trial: Trial, k: int) -> FusionWeights:
    """The w that a running trial is to evaluate: its point of the box divided by the sum."""
    point = [trial.suggest_float(name, 0.0, 1.0) for name in weight_names(k)]
    return FusionWeights.normalised(point) if sum(point) > 0.0 else FusionWeights.uniform(k)


def _make(name: str, k: int, seed: int) -> BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    # Optuna's population of 50 would see one or two generations of a usual budget.
    return optuna.samplers.NSGAIISampler(population_size=max(10, k), seed=seed)
