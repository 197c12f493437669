"""Stage 1: the outer search, over the fine-tuning hyper-parameters λ."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers import TrainerCallback

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.points import to_json
from fusetune.members.pool import MemberPool
from fusetune.methods import find as find_method
from fusetune.objective import LOSS, Objective
from fusetune.optimization.samplers import HyperparameterSampler
from fusetune.optimization.study import Finished, Loop, Pruned, Report
from fusetune.pipeline.agreement import warnings
from fusetune.pipeline.context import Context, distributions
from fusetune.pipeline.display import Bar
from fusetune.pipeline.workbench import Workbench
from fusetune.training.collect import MemberCollector
from fusetune.training.trajectory import train as train_trajectory
from fusetune.training.watch import ProgressReporter, ValidationWatch

STUDY = "search"
CHECKS_PER_EPOCH = 2  # validations, each of which the pruner may take as its cue
CHECKS = (3, 10)  # per trial, at least and at most


def search(context: Context) -> dict[str, Any]:
    """Find λ; returns the stage's record: the best trial and its parameters."""
    recipe = context.recipe
    if recipe.search.trials == 0:
        record: dict[str, Any] = {"params": {}, "trial": None, "value": None, "seconds": 0.0}
        context.folder.finish("search", record)
        return record
    for note in warnings(context.folder.path, recipe):
        context.display.warn(note)
    primary = context.task.objectives[1]
    sampler = HyperparameterSampler(
        distributions(recipe),
        primary,
        acquisition=recipe.search.acquisition,
        starts=max(3, -(-recipe.search.trials // 4)),
        seed=recipe.seed,
    )
    with context.display.bar("search", recipe.search.trials) as bar:
        loop = context.loop(_show(bar, primary))
        study = loop.run(
            STUDY,
            sampler,
            lambda trial: _parameters(trial, sampler),
            _Evaluate(context, primary, bar),
            trials=recipe.search.trials,
            objectives=[primary],
            pruner=_pruner(recipe.search.pruner),
        )
    best = _best(study, primary)
    seconds = [t.user_attrs.get("seconds", 0.0) for t in study.get_trials(deepcopy=False)]
    record = {
        "params": best.params,
        "trial": best.number,
        "value": best.value,
        "seconds": sum(seconds),
    }
    shutil.rmtree(context.folder.work, ignore_errors=True)
    context.folder.finish("search", record)
    found = ", ".join(
        f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in best.params.items()
    )
    context.display.say(f"search: {primary.name} {best.value:.4f} with {found}")
    return record


class _Evaluate:
    """λ → the value that the search maximises, by training a (light) model."""

    def __init__(self, context: Context, primary: Objective, bar: Bar) -> None:
        self.context = context
        self.primary = primary
        self.bar = bar

    def __call__(
        self, params: dict[str, Any], number: int, report: Report
    ) -> Finished | Pruned:
        started = time.perf_counter()
        folder = self.context.folder.work / f"trial-{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        try:
            watch = self._train(params, number, report, folder)
            if watch.stopped:
                return Pruned({"seconds": time.perf_counter() - started})
            value, attributes = self._value(watch, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if self.context.device.type == "cuda":  # after running out of it, above all
                torch.cuda.empty_cache()
        attributes["seconds"] = time.perf_counter() - started
        return Finished({self.primary.name: value}, attributes)

    def _train(
        self, params: dict[str, Any], number: int, report: Report, folder: Path
    ) -> ValidationWatch:
        context, recipe = self.context, self.context.recipe

        def check(step: int, evaluation: Evaluation) -> bool:
            return report(step, evaluation.values[self.primary.name])

        epochs = recipe.search.epochs or recipe.train.epochs
        checks = min(max(round(epochs * CHECKS_PER_EPOCH), CHECKS[0]), CHECKS[1])
        watch = ValidationWatch(context.scorer("validation"), checks, check)
        progress = ProgressReporter(lambda step, total: self.bar.update(number + step / total))
        callbacks: list[TrainerCallback] = [watch, progress]
        if self._method is not None:
            callbacks.append(
                MemberCollector(
                    folder / "members", recipe.train.members, recipe.train.collect_from
                )
            )
        train_trajectory(
            context.model_maker(recipe.search.variant),
            context.train_data,
            context.collate,
            folder / "checkpoints",
            context.training_arguments(params),
            epochs=epochs,
            seed=recipe.seed,
            device=context.device.type,
            precision=context.precision,
            callbacks=callbacks,
            keep_checkpoints=False,
        )
        return watch

    @property
    def _method(self) -> str | None:
        """The method whose result counts; None for the best single checkpoint."""
        recipe = self.context.recipe
        kind, _, method = recipe.search.objective.partition(":")
        return None if kind == "best_member" else method or recipe.fuse.sampler

    def _value(self, watch: ValidationWatch, folder: Path) -> tuple[float, dict[str, Any]]:
        name, sign = self.primary.name, self.primary.sign
        checked = [evaluation.values for _, evaluation in watch.history]
        best = max(checked, key=lambda values: (sign * values[name], -values[LOSS.name]))
        best_member = float(best[name])
        if self._method is None:
            return best_member, {LOSS.name: best[LOSS.name]}
        recipe = self.context.recipe
        bench = Workbench(MemberPool.open(folder / "members"), self.context, None)
        evaluator = bench.evaluator("validation")
        result = find_method(self._method)(
            bench.pool,
            evaluator,
            budget=recipe.search.fused_evaluations or recipe.fuse.evaluations,
            seed=recipe.seed,
            loop=Loop.in_memory(),
            origin=self.context.origin,
        )
        attributes = {
            LOSS.name: result.values[LOSS.name],
            "best_member": best_member,
            "point": to_json(result.point),
            "evaluations": result.evaluations,
            **self._more(evaluator, len(bench.pool)),
        }
        return float(result.values[name]), attributes

    def _more(self, evaluator: Evaluator, k: int) -> dict[str, Any]:
        """What else is to be kept with a trial whose k members were fused."""
        return {}


def _parameters(trial: Trial, sampler: HyperparameterSampler) -> dict[str, Any]:
    return {name: trial._suggest(name, space) for name, space in sampler.space.items()}


def _best(study: optuna.Study, primary: Objective) -> FrozenTrial:
    """The complete trial with the best value; equal ones are told apart by their loss.

    Short trials often tie, as at the 0 of a correlation that is not defined yet; the first of
    them could be the one whose learning rate is far too high.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def rank(trial: FrozenTrial) -> tuple[float, float]:
        assert trial.value is not None
        return primary.sign * trial.value, -float(trial.user_attrs.get(LOSS.name, 0.0))

    return max(trials, key=rank)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def _show(bar: Bar, primary: Objective) -> Callable[[optuna.Study, FrozenTrial], None]:
    def show(study: optuna.Study, trial: FrozenTrial) -> None:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        text = f"best {primary.name} {study.best_value:.4f}" if done else "none complete yet"
        bar.update(trial.number + 1, text=text)

    return show
