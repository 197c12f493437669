"""The loop over w that `mobo`, `bo` and Optuna's samplers share; no method itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from fusetune.errors import NoResultError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.remote import Remote
from fusetune.executors.executor import Report, Work
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionMethod, FusionResult
from fusetune.methods.origin import Origin
from fusetune.objective import to_maximise
from fusetune.optimization.pareto import choose, front
from fusetune.optimization.recording import ORIGIN, SUGGEST_SECONDS
from fusetune.optimization.rivals import RivalSampler, ask_box
from fusetune.optimization.samplers import ask_weights
from fusetune.optimization.study import Finished, Loop

MOBO = "mobo"
STUDY = "fuse"

Ask = Callable[[Trial, int], FusionWeights]


def study_name(method: str) -> str:
    """The study of a searching method: "fuse" of `mobo`, "fuse-bo" of `bo`, ….

    A method that does not search has no study of that name.
    """
    return STUDY if method == MOBO else f"{STUDY}-{method}"


def is_study_of_weights(name: str) -> bool:
    """Whether a study belongs to a method here, and not to the search of λ."""
    return name == STUDY or name.startswith(f"{STUDY}-")


def weights_of(trial: FrozenTrial) -> FusionWeights:
    """The w that a complete trial of such a study evaluated."""
    return FusionWeights(tuple(trial.user_attrs["weights"]))


def base_starts(pool: MemberPool) -> list[frozenset[int]]:
    """What a search begins with besides: the average of the checkpoints without their base.

    Empty where the base is no member: that is the average of all then.
    """
    return [] if len(pool.trained) == len(pool) else [frozenset(pool.trained)]


def search(
    method: str,
    sampler: BaseSampler,
    evaluator: Evaluator,
    *,
    k: int,
    budget: int,
    loop: Loop,
    ask: Ask = ask_weights,
) -> FusionResult:
    """The w with the best primary metric among those that a sampler proposes.

    Args:
        method: Whose study it is.
        sampler: Proposes the parameters that `ask` reads.
        evaluator: f(w).
        k: Number of members.
        budget: Trials in all.
        loop: Storage and executor.
        ask: A running trial and k → the w to evaluate.
    """
    kind = _Evaluate if evaluator.elsewhere is None else _Anywhere
    evaluate = kind(evaluator)
    study = loop.run(
        study_name(method),
        sampler,
        lambda trial: ask(trial, k),
        evaluate,
        trials=budget,
        objectives=evaluator.objectives,
    )
    return result_of(study.get_trials(deepcopy=False), evaluator, study.study_name)


class _Evaluate:
    """w → its values, in this process."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def __call__(self, weights: FusionWeights, number: int, report: Report) -> Finished:
        return _told(self.evaluator(weights), weights)


class _Anywhere(_Evaluate):
    """w → its values, in any process: `executors.executor.Portable`."""

    def worker(self) -> Callable[[], Work]:
        """Makes the evaluation there."""
        assert self.evaluator.elsewhere is not None
        return Remote(self.evaluator.elsewhere)

    def pack(self, params: FusionWeights, number: int) -> FusionWeights | None:
        """The w; None if its evaluation is known."""
        return None if self.evaluator.store.get(params) is not None else params

    def unpack(self, params: FusionWeights, number: int, value: Evaluation) -> Finished:
        """Keep the outcomes, as if they had been found here."""
        self.evaluator.store.put(params, value)
        return _told(self.evaluator(params), params)


def _told(evaluation: Evaluation, weights: FusionWeights) -> Finished:
    attributes = {"weights": list(weights.values), "seconds": evaluation.seconds}
    return Finished(evaluation.values, attributes)


def rival(name: str) -> FusionMethod:
    """The method that searches with one of Optuna's samplers; see `optimization.rivals`.

    Unlike `mobo` and `bo` it starts from nothing, so that it may end below the best member.
    """

    def method(
        pool: MemberPool,
        evaluator: Evaluator,
        *,
        budget: int,
        seed: int,
        loop: Loop,
        origin: Origin | None = None,
    ) -> FusionResult:
        k = len(pool)
        sampler = RivalSampler(name, k, evaluator.objectives, seed=seed)
        return search(name, sampler, evaluator, k=k, budget=budget, loop=loop, ask=ask_box)

    method.__name__ = method.__qualname__ = name
    return method


def result_of(trials: Sequence[FrozenTrial], evaluator: Evaluator, study: str) -> FusionResult:
    """The best of a search's trials by the primary metric, with the front and the cost.

    Args:
        trials: Of one study, or the first ones of it.
        evaluator: Names the objectives.
        study: Its name, for the message.

    Raises:
        NoResultError: If none of them is complete.
    """
    trials = [t for t in trials if t.state == TrialState.COMPLETE]
    if not trials:
        raise NoResultError(f"No trial of study {study!r} led to a value.")
    names = [o.name for o in evaluator.objectives]
    values = [dict(zip(names, t.values, strict=True)) for t in trials]
    maximised = to_maximise(values, evaluator.objectives)
    best = choose("best", maximised, evaluator.objectives)
    optimal = [trials[i] for i in front(maximised)]
    spent = [(t.user_attrs["seconds"], t.user_attrs.get(SUGGEST_SECONDS, 0.0)) for t in trials]
    return FusionResult(
        point=weights_of(trials[best]),
        values=values[best],
        evaluations=len({weights_of(t) for t in trials}),
        seconds=sum(evaluating + suggesting for evaluating, suggesting in spent),
        details={
            "trial": trials[best].number,
            "origin": trials[best].user_attrs.get(ORIGIN, ""),
            "front": [
                {"trial": t.number, "weights": list(weights_of(t).values)} for t in optimal
            ],
            "suggest_seconds": sum(suggesting for _, suggesting in spent),
        },
    )
