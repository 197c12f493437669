"""f: w, or any other point, in; objective values and per-example outcomes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from fusetune.errors import StageError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.points import Point
from fusetune.objective import Objective


class Average(Protocol):
    """What the evaluator needs of `members.average`: put θ̄(w) into the model."""

    def into_model(self, point: Point) -> None:
        """Make the model's parameters those of the point, in place."""
        ...


@runtime_checkable
class Counted(Protocol):
    """An average that can say what it reads."""

    def bytes_read(self, point: Point) -> int:
        """Bytes of members, or of a model of its own, that `into_model` reads."""
        ...


class Evaluator:
    """Evaluates θ̄(w) on one split and counts what it was asked for.

    Args:
        average: Puts θ̄(w) into `model`.
        model: The one model that all evaluations share.
        score: Model → its values over the whole split.
        objectives: Loss first, then metrics; [1] is the primary.
        store: Remembers evaluations; shared by the evaluators of one split.

    Attributes:
        evaluations: How many distinct w this evaluator was asked for, remembered or not.
        seconds: What evaluating them cost, when they were first evaluated.
    """

    def __init__(
        self,
        average: Average,
        model: nn.Module,
        score: Callable[[nn.Module], Evaluation],
        objectives: Sequence[Objective],
        store: EvaluationStore,
    ) -> None:
        self.average = average
        self.model = model
        self.score = score
        self.objectives = tuple(objectives)
        self.store = store
        self._asked: dict[Point, Evaluation] = {}

    @property
    def primary(self) -> Objective:
        """The metric that decides; the loss where it is the only objective."""
        return self.objectives[min(1, len(self.objectives) - 1)]

    @property
    def evaluations(self) -> int:
        """Distinct w that this evaluator was asked for."""
        return len(self._asked)

    @property
    def seconds(self) -> float:
        """Seconds that their evaluations took."""
        return sum(evaluation.seconds for evaluation in self._asked.values())

    def scorer(self, needed_by: str) -> Scorer:
        """`score`, for methods that need its task, batches and labels.

        Args:
            needed_by: Who asks, for the message.

        Raises:
            StageError: If `score` is a function that knows no task.
        """
        if not isinstance(self.score, Scorer):
            raise StageError(
                f"{needed_by} needs a task, with its loss and labels; this evaluator has only "
                "a function that scores models.",
                hint="Evaluate with fusetune.evaluation.scorer.Scorer.",
            )
        return self.score

    def fresh(self) -> Evaluator:
        """The same evaluator with its counters at zero, for the next method."""
        return Evaluator(self.average, self.model, self.score, self.objectives, self.store)

    def __call__(self, point: Point) -> Evaluation:
        """The values of θ̄(w): from the store if it was evaluated before."""
        evaluation = self._asked.get(point) or self.store.get(point)
        if evaluation is None:
            started = time.perf_counter()
            self.average.into_model(point)
            averaging = time.perf_counter() - started
            scored = self.score(self.model)
            seconds = time.perf_counter() - started
            read = self.average.bytes_read(point) if isinstance(self.average, Counted) else 0
            evaluation = Evaluation(scored.values, scored.outputs, seconds, averaging, read)
            self.store.put(point, evaluation)
        self._asked[point] = evaluation
        return evaluation

    def better(self, a: Evaluation, b: Evaluation) -> bool:
        """Whether `a` beats `b`: by the primary metric, then by the loss."""
        first = self.objectives[0]
        x, y = a.values[self.primary.name], b.values[self.primary.name]
        return self.primary.better(x, y) or (
            x == y and first.better(a.values[first.name], b.values[first.name])
        )
