"""Evaluations of w in another process: weights there, values and outcomes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.executors.executor import Report, Work
from fusetune.members.weights import FusionWeights


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

        def work(weights: FusionWeights, number: int, report: Report) -> Evaluation:
            return evaluator(weights)

        return work
