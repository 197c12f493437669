"""A sampler without state: what it proposes is stored with the trial before it is used.

A proposal follows from (seed, trial number) and from the trials of the study, and is stored in
one record before the trial reads its parameters: a trial that was interrupted anywhere
continues with what it had been given.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from botorch.exceptions.errors import BotorchError
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

SUGGESTION = "fusetune:suggestion"
"""System attribute of a trial: the parameters that it was given."""

ORIGIN = "origin"
"""User attribute of a trial: member, uniform, given, prior, greedy, sobol, model, random, or a
rival."""

FALLBACK = "fallback"
"""User attribute: why a random point was proposed in place of the model's."""

SUGGEST_SECONDS = "suggest_seconds"
"""User attribute: what the proposal took."""

NUMERICAL = (RuntimeError, BotorchError, np.linalg.LinAlgError)
"""What a surrogate raises that cannot be fitted; torch's LinAlgError is a RuntimeError."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Attributes:
    params: Parameter name → value.
    origin: Where it comes from; see `ORIGIN`.
    fallback: Why the model could not be used; empty if it was, or was not due.
    memory: System attributes by which the sampler finds the trial again.
    """

    params: Mapping[str, Any]
    origin: str
    fallback: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict)


class RecordingSampler(BaseSampler):
    """Proposes all parameters of a trial at once, and stores the proposal first.

    Args:
        space: Parameter name → distribution.
        seed: Of the whole study.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self.space = dict(space)
        self.seed = seed

    @abstractmethod
    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        """The parameters of trial `number`, given all other trials of the study."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The sampler's own space; Optuna sets parameters with a single value itself."""
        return {name: d for name, d in self.space.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What was stored with the trial, or else a new proposal, stored at once."""
        stored: dict[str, Any] | None = trial.system_attrs.get(SUGGESTION)
        if stored is not None:
            return stored
        # All trials of the study, whatever part of them a pruner would show.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        others = [t for t in trials if t.number != trial.number]
        started = time.perf_counter()
        proposal = self.propose(trial.number, others)
        seconds = time.perf_counter() - started
        study._storage.set_trial_user_attr(trial._trial_id, SUGGEST_SECONDS, seconds)
        if proposal.fallback:
            logger.warning("trial %d: random point, %s", trial.number, proposal.fallback)
            study._storage.set_trial_user_attr(trial._trial_id, FALLBACK, proposal.fallback)
        study._storage.set_trial_user_attr(trial._trial_id, ORIGIN, proposal.origin)
        for key, value in proposal.memory.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        params = dict(proposal.params)
        study._storage.set_trial_system_attr(trial._trial_id, SUGGESTION, params)
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never used: every parameter belongs to the sampler's space.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{param_name}, {param_distribution}, is not in the sampler's space: {self.space}."
        )
