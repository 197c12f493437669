"""One trial of the outer search: train a (light) model with λ, and what that is worth."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, Trial
from transformers import TrainerCallback

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.executors.executor import Work
from fusetune.executors.group import current
from fusetune.members.points import to_json
from fusetune.members.pool import MemberPool
from fusetune.methods import find as find_method
from fusetune.methods.method import FusionResult
from fusetune.objective import LOSS, Objective
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.optimization.study import Finished, Loop, Pruned, Report
from fusetune.pipeline import remote
from fusetune.pipeline.best_trial import ERROR, best_error, rank
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Bar
from fusetune.pipeline.kept import KeptTrial, KeptTrials
from fusetune.pipeline.light import TrialParts, trial_parts
from fusetune.pipeline.shared import SharedTraining
from fusetune.pipeline.space import sobol_trials
from fusetune.pipeline.together import lockstep, together
from fusetune.pipeline.trajectories import FirstModel
from fusetune.pipeline.workbench import Workbench, open_pool
from fusetune.training.collect import MemberCollector
from fusetune.training.trajectory import train as train_trajectory
from fusetune.training.watch import ProgressReporter, ValidationWatch

CHECKS_PER_EPOCH = 2  # validations, each of which the pruner may take as its cue
CHECKS = (3, 10)  # per trial, at least and at most


def parameters(trial: Trial, sampler: HyperparameterSampler) -> dict[str, Any]:
    """The λ that the sampler suggests, by name."""
    return {name: trial._suggest(name, space) for name, space in sampler.space.items()}


class TrialEvaluation:
    """λ → the value that the search maximises, by training a (light) model."""

    def __init__(self, context: Context, primary: Objective, bar: Bar) -> None:
        self.context = context
        self.primary = primary
        self.bar = bar
        self.keeps = context.recipe.trains_in_trials
        self.kept = KeptTrials(context.folder.kept)
        self.shared = context.shared if self.keeps else None
        self.apart = ""  # tells the folders of workers apart

    def forget(self, trials: Sequence[FrozenTrial]) -> None:
        """Keep the members of no more trials than the training can take over."""
        trajectories = self.context.recipe.train.trajectories
        count = trajectories.count if trajectories.source == "trials" else 1
        self.kept.prune(trials, self.primary, count)

    def __call__(
        self, params: dict[str, Any], number: int, report: Report
    ) -> Finished | Pruned:
        """The value of λ, or that the pruner stopped its training.

        Args:
            params: λ.
            number: Of the trial.
            report: Tells the pruner a step and a value; whether to stop.
        """
        started = time.perf_counter()
        folder = self.context.folder.work / f"trial-{number:04d}{self.apart}"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        self.kept.drop(number)
        try:
            training, stopped, saved = self._obtain(params, number, report, folder)
            if stopped:
                return Pruned({"seconds": time.perf_counter() - started + saved})
            value, attributes = self._value(training, folder)
            if self.keeps:
                self.kept.keep(number, folder, training.trial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if self.context.device.type == "cuda":  # after running out of it, above all
                torch.cuda.empty_cache()
        attributes["seconds"] = time.perf_counter() - started + saved
        return Finished({self.primary.name: value}, attributes)

    def worker(self) -> Callable[[], Work]:
        """Makes the evaluation in another process; see `executors.executor.Portable`."""
        return remote.SearchWork.of(self.context, type(self))

    def pack(self, params: dict[str, Any], number: int) -> Any:
        """λ; every trial has to be trained."""
        return params

    def unpack(self, params: dict[str, Any], number: int, value: Any) -> Finished | Pruned:
        """What the worker found; members that are kept are where they belong."""
        for left in self.context.folder.work.glob(f"trial-{number:04d}-*"):
            shutil.rmtree(left, ignore_errors=True)  # of workers that died
        assert isinstance(value, Finished | Pruned)
        return value

    def _obtain(
        self, params: dict[str, Any], number: int, report: Report, folder: Path
    ) -> tuple[SharedTraining, bool, float]:
        """A training, whether it stops early, and the seconds that another run spent on it."""
        recipe, members = self.context.recipe, folder / "members"
        found = self.shared.take(recipe, params, members) if self.shared else None
        if found is not None:
            stopped = any(self._check(report, *check) for check in found.history)
            return found, stopped, found.seconds
        group = current()
        tell = report if group is None else lambda *check: group.same(report(*check))
        work = functools.partial(self._train, params, number, tell, folder)
        training, stopped = together(
            self.context, work, _train_along, type(self), params, number
        )
        if self.shared and not stopped and number < sobol_trials(recipe):
            self.shared.keep(recipe, members, training)
        return training, stopped, 0.0

    def _check(self, report: Report, step: int, values: Mapping[str, float]) -> bool:
        """Tell the pruner; whether the trial is to stop."""
        return report(step, values[self.primary.name])

    def _train(
        self, params: dict[str, Any], number: int, report: Report, folder: Path
    ) -> tuple[SharedTraining, bool]:
        """The training, and whether it was stopped early."""
        started = time.perf_counter()
        context, recipe = self.context, self.context.recipe

        def check(step: int, evaluation: Evaluation) -> bool:
            return self._check(report, step, evaluation.values)

        epochs = recipe.search.epochs or recipe.train.epochs
        checks = min(max(round(epochs * CHECKS_PER_EPOCH), CHECKS[0]), CHECKS[1])
        parts = self.parts
        start = FirstModel(parts.make_model, recipe)
        watch = ValidationWatch(lockstep(parts.score), checks, check)
        progress = ProgressReporter(lambda step, total: self.bar.update(number + step / total))
        callbacks: list[TrainerCallback] = [watch, progress]
        collector = MemberCollector(
            folder / "members",
            recipe.train.members_each,
            recipe.train.collect_from,
            context.tokenizer if self.keeps else None,
        )
        if self.keeps or self._method is not None:
            callbacks.append(collector)
        steps = train_trajectory(
            start,
            parts.data,
            parts.collate,
            folder / "checkpoints",
            context.training_arguments(params, folder.name),
            epochs=epochs,
            seed=recipe.seed,
            device=context.device.type,
            precision=context.precision,
            callbacks=callbacks,
            keep_checkpoints=False,
            logs=self.context.folder.logs / folder.name,
        )
        history = tuple((step, evaluation.values) for step, evaluation in watch.history)
        trial = KeptTrial(params, collector.steps, steps, start.digest)
        error = None
        if recipe.usual_rate is not None:
            labels = context.scorer("validation").encoded.labels
            error = best_error([found for _, found in watch.history], context.task, labels)
        seconds = time.perf_counter() - started
        return SharedTraining(trial, history, seconds, error), watch.stopped

    @cached_property
    def parts(self) -> TrialParts:
        """What every trial trains with; with kept activations where layers are frozen."""
        return trial_parts(self.context)

    @property
    def _method(self) -> str | None:
        """The method whose result counts; None for the best single checkpoint."""
        recipe = self.context.recipe
        kind, _, method = recipe.search.objective.partition(":")
        return None if kind == "best_member" else method or recipe.fuse.sampler

    def _value(self, training: SharedTraining, folder: Path) -> tuple[float, dict[str, Any]]:
        name = self.primary.name
        checks = [values for _, values in training.history]
        best = max(checks, key=lambda values: rank(values, self.primary))
        best_member = float(best[name])
        if self._method is None:
            known = {} if training.error is None else {ERROR: training.error}
            return best_member, {LOSS.name: best[LOSS.name], **known}
        bench = Workbench(open_pool(self.context, folder / "members"), self.context, None)
        evaluator = bench.evaluator("validation")
        result = self._fused(bench.pool, evaluator, self._method)
        attributes = {
            LOSS.name: result.values[LOSS.name],
            "best_member": best_member,
            "point": to_json(result.point),
            "evaluations": result.evaluations,
            **self._more(evaluator, len(bench.pool)),
        }
        return float(result.values[name]), attributes

    def _fused(self, pool: MemberPool, evaluator: Evaluator, method: str) -> FusionResult:
        """What a method makes of the trial's members, with the budget of the inner search."""
        recipe = self.context.recipe
        return find_method(method)(
            pool,
            evaluator,
            budget=recipe.search.fused_evaluations or recipe.fuse.evaluations,
            seed=recipe.seed,
            loop=Loop.in_memory(),
            origin=self.context.origin,
            **self.context.method_options(method),
        )

    def _more(self, evaluator: Evaluator, k: int) -> dict[str, Any]:
        """What else is to be kept with a trial whose k members were fused."""
        return {}


def _train_along(
    context: Context, kind: type[TrialEvaluation], params: dict[str, Any], number: int
) -> None:
    """Of a group's other processes: their part of the training of a trial."""
    group = current()
    assert group is not None
    evaluate = kind(context, context.task.objectives[1], Bar(None, None))
    folder = context.folder.work / f"trial-{number:04d}-process-{group.rank}"
    try:
        evaluate._train(params, number, lambda *check: group.same(False), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
