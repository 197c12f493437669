"""One loop for both searches: ask, evaluate, tell, over an Optuna study.

    define(trial) → params        here, in the driver; reads the trial's parameters
    evaluate(params, number, report) → Finished | Pruned        wherever the executor runs it
    tell                          here: the driver alone writes to the storage

The states of a trial are Optuna's: RUNNING until it is told, then COMPLETE, PRUNED or FAIL. One
that a dead process has left RUNNING is taken up again under the same number; see `claims`.

With several trials at once, what the next one is depends on which of the others have been told.
An executor that is `ordered` tells them by number, so that trial n is always asked for when
exactly the trials up to n − capacity have been told: every run, resumed or not, has the same
history. Otherwise nothing is lost or doubled, but histories differ.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import optuna
from optuna import Study, Trial
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import NoResultError, RunError
from fusetune.executors.executor import Executor, Job, Outcome, Report
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import Objective
from fusetune.optimization.claims import Claims, Shared, Sole, require_same
from fusetune.optimization.pruning import last_step, report
from fusetune.optimization.storage import open_storage, quiet, storing
from fusetune.optimization.telling import REASON, Finished, Pruned, tell

__all__ = ["Finished", "Loop", "Pruned", "Report", "open_storage"]

P = TypeVar("P")

HOPELESS = 5
"""So many trials that all failed, and none that did not, end a search."""

Evaluate = Callable[[P, int, Report], Finished | Pruned]


class Loop:
    """Runs studies in one storage, through one executor.

    Args:
        storage: Where trials are kept.
        executor: Where evaluations run; used by one loop at a time.
        on_trial: Called with the study and each trial that has just been told. A process
            killed in between does not call it again: what matters belongs into
            the trial.
        prefix: Put before the name of each study, for a storage shared with other runs.
        shared: What decides about the trials of these studies, as a digest, where other
            processes work on the same ones; None where this is the only one.
    """

    def __init__(
        self,
        storage: BaseStorage,
        executor: Executor,
        *,
        on_trial: Callable[[Study, FrozenTrial], None] | None = None,
        prefix: str = "",
        shared: str | None = None,
    ) -> None:
        self.prefix = prefix
        self.shared = shared
        self.storage = storage
        self.executor = executor
        self.on_trial = on_trial

    @classmethod
    def in_memory(cls) -> Loop:
        """A loop that keeps nothing: for the library, for tests and inside of trials."""
        return cls(InMemoryStorage(), SerialExecutor())

    def run(
        self,
        name: str,
        sampler: BaseSampler,
        define: Callable[[Trial], P],
        evaluate: Evaluate[P],
        *,
        trials: int,
        objectives: Sequence[Objective],
        pruner: BasePruner | None = None,
    ) -> Study:
        """Bring study `name` to `trials` finished trials; one that has them is left as it is.

        A trial fails, with its reason, if `evaluate` raises or returns a value that is not
        finite. Errors that no other trial would escape end the loop: a full disk, and
        every `FusetuneError` but a `StageError`. Their trials stay RUNNING and are resumed.

        Args:
            name: Of the study, created if the storage has none.
            sampler: Proposes parameters; its proposals must follow from its seed, the
                trial's number and the study's other trials.
            define: Reads a trial's parameters, `trial.suggest_…`, in the driver.
            evaluate: Called with those parameters, the trial's number and `report`.
            trials: How many, failed and pruned ones included.
            objectives: In the order of the study's values.
            pruner: Decides in `report`; None never stops a trial. Studies with several
                objectives have no intermediate values: there `report` does nothing.

        Raises:
            RunError: If the study was made for other objectives.
            NoResultError: If all trials fail.
            StageError: If the storage cannot be written to.
        """
        with storing():
            study = self._open(name, sampler, objectives, pruner)
            claims: Claims = Sole(study) if self.shared is None else Shared(study)
        active: dict[int, Trial] = {}
        with claims:
            while True:
                while len(active) < max(1, self.executor.capacity):
                    with storing():
                        trial = claims.next(trials)
                        if trial is None:
                            break
                        params = define(trial)
                    active[trial.number] = trial
                    self.executor.submit(trial.number, self._job(trial, params, evaluate))
                if not active:
                    if claims.wait():
                        continue
                    break
                for outcome in self._outcomes():
                    self._tell(study, active.pop(outcome.number), outcome, objectives, claims)
        _require_success(study)
        return study

    def settled(self, number: int) -> int:
        """The last trial that had certainly been told when trial `number` was asked for.

        Of an executor that is not `ordered`, nothing is certain: any trial may have been.
        """
        return number - max(1, self.executor.capacity) if self.executor.ordered else number

    def _outcomes(self) -> Iterator[Outcome]:
        """The next outcome, and those that are there already: what is known helps to suggest.

        One alone if they come in order: which others are there would be chance.
        """
        yield self.executor.next_done()
        while not self.executor.ordered and self.executor.any_done():
            yield self.executor.next_done()

    def _job(self, trial: Trial, params: P, evaluate: Evaluate[P]) -> Job:
        last = self.settled(trial.number)
        tell_pruner = functools.partial(report, trial, last_step(trial), last)
        reports = len(trial.study.directions) == 1
        return Job(evaluate, params, trial.number, tell_pruner, reports)

    def _tell(
        self,
        study: Study,
        trial: Trial,
        outcome: Outcome,
        objectives: Sequence[Objective],
        claims: Claims,
    ) -> None:
        with storing():
            told = claims.tell(trial, lambda: tell(study, trial, outcome, objectives))
        if told is None:
            return
        if self.on_trial is not None:
            self.on_trial(study, told)
        if told.state == TrialState.FAIL and _count_finished(study) >= HOPELESS:
            _require_success(study)

    def find(self, name: str) -> Study | None:
        """Study `name` for reading, or None if the storage has none."""
        with quiet():
            try:
                return optuna.load_study(study_name=self.prefix + name, storage=self.storage)
            except KeyError:
                return None

    def names(self) -> list[str]:
        """The names of all studies of this run, in order."""
        with storing(), quiet():
            found = optuna.get_all_study_names(self.storage)
        return sorted(n.removeprefix(self.prefix) for n in found if n.startswith(self.prefix))

    def delete(self, name: str) -> None:
        """Forget study `name`, if there is one, so that it starts anew."""
        with storing():
            if self.find(name) is not None:
                optuna.delete_study(study_name=self.prefix + name, storage=self.storage)

    def _open(
        self,
        name: str,
        sampler: BaseSampler,
        objectives: Sequence[Objective],
        pruner: BasePruner | None,
    ) -> Study:
        name = self.prefix + name
        wanted = [(o.name, o.direction) for o in objectives]
        pruner = pruner or NopPruner()
        with quiet():
            try:
                study = optuna.load_study(
                    study_name=name, storage=self.storage, sampler=sampler, pruner=pruner
                )
            except KeyError:
                study = optuna.create_study(
                    study_name=name,
                    storage=self.storage,
                    sampler=sampler,
                    pruner=pruner,
                    directions=[direction for _, direction in wanted],
                    load_if_exists=self.shared is not None,  # another process was quicker
                )
            directions = [d.name.lower() for d in study.directions]
            names = study.metric_names or [n for n, _ in wanted]  # created, then killed
            if list(zip(names, directions, strict=True)) != wanted:
                raise RunError(
                    f"Study {name!r} optimises {_listed(zip(names, directions, strict=True))}; "
                    f"asked for was {_listed(wanted)}.",
                    hint="Start the stage anew with --force, or use another folder.",
                )
            if study.metric_names is None:
                study.set_metric_names(names)
            if self.shared is not None:
                require_same(study, self.shared)
        return study


def _count_finished(study: Study) -> int:
    return sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))


def _require_success(study: Study) -> None:
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    if not trials or any(t.state != TrialState.FAIL for t in trials):
        return
    reasons = Counter(t.user_attrs.get(REASON, "unknown") for t in trials)
    reason, count = reasons.most_common(1)[0]
    raise NoResultError(
        f"All {len(trials)} trials of study {study.study_name!r} failed, {count} of them with: "
        f"{reason}.",
        hint="Put that right, then run the stage again with --force.",
    )


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({direction})" for name, direction in pairs)
