"""`mobo`: multi-objective Bayesian optimisation of the fusion weights (MOBO-SWA).

.. [Jang2024] C. Jang et al. Model Fusion through Bayesian Optimization in Language Model
   Fine-Tuning. NeurIPS 2024.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.ensemble import Ensemble, mixture_of
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.interpolation import Interpolation
from fusetune.evaluation.scorer import Scorer
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.methods.search import MOBO, base_starts, search, study_name
from fusetune.optimization.prior import MakePrior, Prior
from fusetune.optimization.samplers import FusionSampler
from fusetune.optimization.study import Loop

MOST_NUMBERS = 1 << 24
"""Predictions of averages, all examples together, that a suggestion is made from; 64 MB."""

FEWEST_KNOWN = 16
"""So many averages are known to it in any case."""


def mobo(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
    prior: bool = True,
    starts: Sequence[FusionWeights] = (),
) -> FusionResult:
    """The w with the best primary metric among all that the search evaluated [Jang2024].

    The search takes in every member, the uniform average and the steps of the greedy
    soup, so that the result is never worse on the evaluator's split than `finetune`, `swa`
    or `greedy`, provided that the budget reaches that far: 2 k + 1 evaluations do.

    Args:
        pool: The k members.
        evaluator: f(w) on the validation split.
        budget: Trials in all.
        seed: The only source of randomness.
        loop: Storage and executor.
        prior: Whether the predictions of the members, and of the averages evaluated so far,
            may lead the search. They do not where the evaluator knows no task, and are given
            up where they do not foretell, which `details["notes"]` then says.
        starts: w to evaluate as well, after the members and the uniform average.
    """
    k = len(pool)
    if loop.executor.capacity == 1:  # else workers take one point each, side by side
        evaluator.prefetch(starting_points(k))
    make = ensemble_prior(evaluator, k) if prior else None
    sampler = FusionSampler(
        k,
        evaluator.objectives,
        seed=seed,
        prior=make,
        further=base_starts(pool),
        given=starts,
        budget=budget,
    )
    result = search(MOBO, sampler, evaluator, k=k, budget=budget, loop=loop)
    study = loop.find(study_name(MOBO))
    assert study is not None  # it has just been run
    notes = _notes(sampler, study.get_trials(deepcopy=False))
    details = {**result.details, "notes": notes} if notes else result.details
    return dataclasses.replace(result, details=details)


def ensemble_prior(evaluator: Evaluator, k: int) -> MakePrior | None:
    """What the ensemble of those members that can be evaluated says of every w.

    None if the evaluator's score knows no task, and so no predictions. Members are taken
    from the evaluator's store, where their own evaluations are.
    """
    if not isinstance(evaluator.score, Scorer):
        return None

    def make(members: tuple[int, ...]) -> Prior:
        mixture = mixture_of(evaluator, k, members)
        lowest = mixture.minimiser()
        starts = np.empty((0, k)) if lowest is None else lowest[None]
        if not isinstance(mixture, Ensemble):
            return Prior(mixture.predict, starts)
        return Prior(mixture.predict, starts, partial(_interpolation, evaluator, mixture))

    return make


def _interpolation(
    evaluator: Evaluator, ensemble: Ensemble, weights: NDArray[np.float64]
) -> Interpolation | None:
    """The predictions of all averages from those of some, as far as the store has them.

    Of very large splits, or very many classes, the newest averages have to do.
    """
    room = max(FEWEST_KNOWN, MOST_NUMBERS // ensemble.predictions[0].size)
    weights = weights[-room:]
    known: list[int] = []
    predictions: list[NDArray[np.float32]] = []
    for i, w in enumerate(weights.tolist()):
        evaluation = evaluator.store.get(FusionWeights(tuple(w)))
        outputs = None if evaluation is None else evaluation.outputs
        if outputs is not None and np.isfinite(outputs.predictions).all():
            known.append(i)
            predictions.append(outputs.predictions)
    if not known:
        return None
    return Interpolation(ensemble, weights[known], np.stack(predictions))


def _notes(sampler: FusionSampler, trials: list[FrozenTrial]) -> list[str]:
    """What is to be said of objectives for which the prior was given up."""
    return [
        f"The ensemble of the members does not predict {name} of their averages ({why}): mobo "
        "searched without it."
        for name, why in sampler.doubts(trials).items()
    ]
