"""Stage 1: the outer search, over the fine-tuning hyper-parameters λ."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fusetune.objective import Objective
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.pipeline import starts
from fusetune.pipeline.agreement import warnings
from fusetune.pipeline.best_trial import choose, sentence
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.display import Bar
from fusetune.pipeline.space import distributions, pruner, sobol_trials
from fusetune.pipeline.trial import TrialEvaluation, parameters


def search(context: Context) -> dict[str, Any]:
    """Find λ; returns the stage's record: the best trial and its parameters."""
    recipe = context.recipe
    if recipe.search.trials == 0:
        record: dict[str, Any] = {"params": {}, "trial": None, "value": None, "seconds": 0.0}
        record |= {"trainings": 0, "evaluations": 0}
        context.folder.finish("search", record)
        return record
    for note in warnings(context.folder.path, recipe):
        context.display.warn(note)
    primary = context.task.objectives[1]
    space = distributions(recipe)
    sampler = HyperparameterSampler(
        space,
        primary,
        acquisition=recipe.search.acquisition,
        starts=sobol_trials(recipe),
        given=starts.hyperparameters(context, space),
        seed=recipe.seed,
    )
    with context.display.bar("search", recipe.search.trials) as bar:
        evaluate = TrialEvaluation(context, primary, bar)
        loop = context.search_loop(_told(bar, primary, evaluate))
        evaluate.forget(context.trials(SEARCH))
        study = loop.run(
            SEARCH,
            sampler,
            lambda trial: parameters(trial, sampler),
            evaluate,
            trials=recipe.search.trials,
            objectives=[primary],
            pruner=pruner(recipe.search.pruner),
        )
    trials = study.get_trials(deepcopy=False)
    evaluate.forget(trials)
    best, first = choose(trials, primary, recipe.usual_rate)
    record = {
        "params": best.params,
        "trial": best.number,
        "value": best.value,
        "best_trial": first.number,
        "seconds": sum(t.user_attrs.get("seconds", 0.0) for t in trials),
        "trainings": len(trials),
        "evaluations": sum(_evaluations(t) for t in trials),
    }
    if not evaluate.keeps:
        shutil.rmtree(context.folder.work, ignore_errors=True)
    context.folder.finish("search", record)
    context.display.say(sentence(best, first, primary))
    return record


def _evaluations(trial: FrozenTrial) -> int:
    """Models of a trial that were evaluated: as it trained, and fused ones."""
    return len(trial.intermediate_values) + int(trial.user_attrs.get("evaluations", 0))


def _told(
    bar: Bar, primary: Objective, evaluate: TrialEvaluation
) -> Callable[[optuna.Study, FrozenTrial], None]:
    def show(study: optuna.Study, trial: FrozenTrial) -> None:
        evaluate.forget(study.get_trials(deepcopy=False))
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        text = f"best {primary.name} {study.best_value:.4f}" if done else "none complete yet"
        bar.update(trial.number + 1, text=text)

    return show
