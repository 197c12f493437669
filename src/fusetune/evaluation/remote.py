"""Evaluations of w in another process: weights there, values and outcomes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.racing import Dropped, race
from fusetune.executors.executor import Report, Work
from fusetune.members.weights import FusionWeights


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a worker needs to know of one evaluation: some hundred bytes without a race.

    Attributes:
        weights: To evaluate.
        rivals: On the front, with their outcomes, where there is a race.
    """

    weights: FusionWeights
    rivals: tuple[tuple[FusionWeights, Evaluation], ...] = ()


@dataclass(frozen=True, slots=True)
class Remote:
    """The work of evaluating w; members, model and batches are made once per worker.

    Attributes:
        make: Makes the evaluator there; small, can be pickled.
    """

    make: Callable[[], Evaluator]

    def __call__(self) -> Work:
        """The work; called in the worker."""
        evaluator = self.make()

        def work(candidate: Candidate, number: int, report: Report) -> Evaluation | Dropped:
            for weights, evaluation in candidate.rivals:
                evaluator.store.put(weights, evaluation)
            return race(evaluator, candidate.weights, [w for w, _ in candidate.rivals])

        return work
