"""What the pruner is told of a running trial, and what it sees of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from fusetune.optimization.storage import quiet, storing


def report(trial: Trial, resumed_from: int, settled: int, step: int, value: float) -> bool:
    """Store an intermediate value and ask the pruner, in the driver's process.

    The serial executor calls this directly; one that evaluates elsewhere relays it. A value
    that is not finite is left out: what it means is for the evaluation to say. In a
    resumed trial, every step before the last one reported had been let through. The pruner
    sees the trials up to `settled`, and this one.
    """
    study = trial.study
    if len(study.directions) > 1 or not math.isfinite(value) or step < resumed_from:
        return False
    with storing(), quiet():
        if step != resumed_from:
            trial.report(value, step)
        if settled >= trial.number - 1:
            return trial.should_prune()
        frozen = study._storage.get_trial(trial._trial_id)
        return study.pruner.prune(_Settled(study, settled, frozen.number), frozen)  # type: ignore[arg-type]


class _Settled:
    """A study as a pruner is to see it: without trials whose end is a matter of chance."""

    def __init__(self, study: Study, last: int, number: int) -> None:
        self._study = study
        self._shown = (*range(last + 1), number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: Iterable[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As `Study.get_trials`, of those that are shown."""
        wanted = None if states is None else tuple(states)
        found = self._study.get_trials(deepcopy=deepcopy, states=wanted)
        return [trial for trial in found if trial.number in self._shown]


def last_step(trial: Trial) -> int:
    """The last step that an earlier attempt reported; -1 if none."""
    return max(trial._cached_frozen_trial.intermediate_values, default=-1)
