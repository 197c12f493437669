"""The inner search over w in a trial of the outer one, ended where the trial cannot win."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, Trial, TrialState

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.methods import find as find_method
from fusetune.methods.method import FusionResult
from fusetune.methods.mobo import ensemble_prior
from fusetune.methods.search import MOBO, study_name, weights_of
from fusetune.objective import Objective
from fusetune.optimization.promise import Mark, Promise, promise
from fusetune.optimization.study import Loop
from fusetune.pipeline.context import Context

PROMISE = "promise"
"""User attribute of an outer trial: its `Promise`."""

MARK = "mark"
"""User attribute of an outer trial: the `Mark` that it had when it began."""

INNER = "inner"
"""User attribute of an outer trial: whether its inner search was run to the end."""

FULL, STOPPED = "full", "stopped"


def mark(trial: Trial, primary: Objective) -> Mark | None:
    """What a trial has to reach; stored with it, so that a resumed one has the same.

    Args:
        trial: Running; asked by the driver.
        primary: The objective of its study.
    """
    stored = trial.user_attrs.get(MARK)
    if stored is not None:
        return Mark(**stored)
    told = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [primary.sign * float(t.values[0]) for t in told]
    ended = [
        (Promise(**t.user_attrs[PROMISE]), value)
        for t, value in zip(told, values, strict=True)
        if t.user_attrs.get(INNER) == FULL
    ]
    found = Mark.of(values, ended)
    if found is not None:
        trial.set_user_attr(MARK, asdict(found))
    return found


def fuse_members(
    context: Context,
    pool: MemberPool,
    evaluator: Evaluator,
    method: str,
    to_reach: Mark | None,
) -> tuple[FusionResult, dict[str, Any]]:
    """What a method makes of a trial's members, and attributes to keep with the trial.

    With `search.inner: auto`, `mobo` goes no further than the members, the uniform average and
    the prior's own point if the trial is then out of reach of the best one.

    Args:
        context: Of the run.
        pool: The k members of the trial.
        evaluator: f(w) on the validation split.
        method: Its name.
        to_reach: Of `mark`; None never ends a search.
    """
    recipe, k = context.recipe, len(pool)
    budget = recipe.search.fused_evaluations or recipe.fuse.evaluations
    loop = Loop.in_memory()

    def run(evaluations: int) -> FusionResult:
        return find_method(method)(
            pool,
            evaluator,
            budget=evaluations,
            seed=recipe.seed,
            loop=loop,
            origin=context.origin,
            **context.method_options(method),
        )

    judged = method == MOBO and recipe.fuse.prior and recipe.search.inner == "auto"
    if not judged or budget <= k + 2:
        return run(budget), {}
    begun = run(k + 2)
    found = _promise(evaluator, loop, k, recipe.seed)
    if found is None:
        return run(budget), {}
    attributes = {PROMISE: asdict(found)}
    if to_reach is not None and to_reach.out_of_reach(found):
        return begun, {**attributes, INNER: STOPPED}
    return run(budget), {**attributes, INNER: FULL}  # goes on where the first part ended


def stopped(trials: Iterable[FrozenTrial]) -> int:
    """In how many trials the inner search was ended early."""
    return sum(t.user_attrs.get(INNER) == STOPPED for t in trials)


def note(trials: Iterable[FrozenTrial]) -> list[str]:
    """What the report says of them; nothing if there are none."""
    trials = list(trials)
    count = stopped(trials)
    if not count:
        return []
    return [
        f"search: the inner search over w was ended early in {count} of {len(trials)} trials: "
        "after their first evaluations they could not reach the best one."
    ]


def _promise(evaluator: Evaluator, loop: Loop, k: int, seed: int) -> Promise | None:
    """The promise after what the loop has evaluated; None where there is no prior."""
    make = ensemble_prior(evaluator, k)
    study = loop.find(study_name(MOBO))
    assert study is not None  # it has just been run
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    weights = np.array([weights_of(t).values for t in trials], dtype=np.float64)
    members = tuple(i for i in range(k) if (weights[:, i] == 1.0).any())
    if make is None or not members:
        return None
    primary = evaluator.primary
    place = evaluator.objectives.index(primary)
    values = np.array([primary.sign * t.values[place] for t in trials])
    return promise(make(members), weights, values, primary, seed)
