"""`mobo`: multi-objective Bayesian optimisation of the fusion weights (MOBO-SWA).

.. [Jang2024] C. Jang et al. Model Fusion through Bayesian Optimization in Language Model
   Fine-Tuning. NeurIPS 2024.
"""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.objective import to_maximise
from fusetune.optimization.pareto import choose, front
from fusetune.optimization.samplers import (
    SUGGEST_SECONDS,
    FusionSampler,
    ask_weights,
    weights_of,
)
from fusetune.optimization.study import Finished, Loop, Report

STUDY = "fuse"


def mobo(
    pool: MemberPool, evaluator: Evaluator, *, budget: int, seed: int, loop: Loop
) -> FusionResult:
    """The w with the best primary metric among all that the search evaluated [Jang2024].

    The search starts with every member, the uniform average and the steps of the greedy
    soup, so that the result is never worse on the evaluator's split than `finetune`, `swa`
    or `greedy`, provided that the budget reaches that far (2 k evaluations always do).
    """
    k = len(pool)

    def evaluate(weights: FusionWeights, number: int, report: Report) -> Finished:
        evaluation = evaluator(weights)
        attributes = {"weights": list(weights.values), "seconds": evaluation.seconds}
        return Finished(evaluation.values, attributes)

    study = loop.run(
        STUDY,
        FusionSampler(k, evaluator.objectives, seed=seed),
        lambda trial: ask_weights(trial, k),
        evaluate,
        trials=budget,
        objectives=evaluator.objectives,
    )
    return _result(study, evaluator)


def _result(study: optuna.Study, evaluator: Evaluator) -> FusionResult:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = [o.name for o in evaluator.objectives]
    values = [dict(zip(names, t.values, strict=True)) for t in trials]
    maximised = to_maximise(values, evaluator.objectives)
    best = choose("best", maximised, evaluator.objectives)
    optimal = [trials[i] for i in front(maximised)]
    spent = [(t.user_attrs["seconds"], t.user_attrs.get(SUGGEST_SECONDS, 0.0)) for t in trials]
    return FusionResult(
        weights=weights_of(trials[best]),
        values=values[best],
        evaluations=len({weights_of(t) for t in trials}),
        seconds=sum(evaluating + suggesting for evaluating, suggesting in spent),
        details={
            "trial": trials[best].number,
            "origin": trials[best].user_attrs.get("origin", ""),
            "front": [
                {"trial": t.number, "weights": list(weights_of(t).values)} for t in optimal
            ],
            "suggest_seconds": sum(suggesting for _, suggesting in spent),
        },
    )
