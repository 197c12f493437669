"""f: w, or any other point, in; objective values and per-example outcomes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import nn

from fusetune.errors import FusetuneError, StageError
from fusetune.evaluation import candidates
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.points import Point
from fusetune.objective import Objective, better, primary_index

logger = logging.getLogger(__name__)


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


def evaluate(
    average: Average, model: nn.Module, score: Callable[[nn.Module], Evaluation], point: Point
) -> Evaluation:
    """Make the model that of the point and score it, with the seconds of both."""
    started = time.perf_counter()
    average.into_model(point)
    averaging = time.perf_counter() - started
    scored = score(model)
    seconds = time.perf_counter() - started
    return Evaluation(scored.values, scored.outputs, seconds, averaging)


class Evaluator:
    """Evaluates θ̄(w) on one split and counts what it was asked for.

    Args:
        average: Puts θ̄(w) into `model`.
        model: The one model that all evaluations share.
        score: Model → its values over the whole split.
        objectives: Loss first, then metrics; [1] is the primary.
        store: Remembers evaluations; shared by the evaluators of one split.
        per_pass: How many models `prefetch` evaluates at once; see `candidates.plan`.
        elsewhere: Makes an evaluator like this one in another process; None if nothing can.
        together: Evaluates a point in several processes at once, which share the model or the
            batches; None if this one does it alone.

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
        per_pass: int = 1,
        elsewhere: Callable[[], Evaluator] | None = None,
        together: Callable[[Point], Evaluation] | None = None,
    ) -> None:
        self.average = average
        self.model = model
        self.score = score
        self.objectives = tuple(objectives)
        self.store = store
        self.per_pass = per_pass
        self.elsewhere = elsewhere
        self.together = together
        self._asked: dict[Point, Evaluation] = {}

    @property
    def primary(self) -> Objective:
        """The metric that decides; the loss where it is the only objective."""
        return self.objectives[primary_index(self.objectives)]

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
        settings = (self.objectives, self.store, self.per_pass, self.elsewhere, self.together)
        return Evaluator(self.average, self.model, self.score, *settings)

    def __call__(self, point: Point) -> Evaluation:
        """The values of θ̄(w): from the store if it was evaluated before."""
        evaluation = self._asked.get(point) or self.store.get(point)
        if evaluation is None:
            if self.together is not None:
                found = self.together(point)
            else:
                found = evaluate(self.average, self.model, self.score, point)
            evaluation = replace(found, read=self._read(point))
            self.store.put(point, evaluation)
        self._asked[point] = evaluation
        return evaluation

    def prefetch(self, points: Iterable[Point]) -> None:
        """Evaluate points that are known together, `per_pass` in each pass over the split.

        They come from the store when they are asked for, and count only then. Which points
        share a pass follows from the argument alone: a pass of which one point is missing in
        the store is made whole, and only what is missing is kept. So a run that was killed
        ends with the same bits. Where a pass takes one model, nothing is done.
        """
        points = list(dict.fromkeys(points))
        scorer = self.score
        if self.per_pass < 2 or not isinstance(scorer, Scorer):
            return
        for start in range(0, len(points), self.per_pass):
            group = points[start : start + self.per_pass]
            missing = {p for p in group if self.store.get(p) is None}
            if len(group) < 2 or not missing:
                continue
            try:
                found = candidates.evaluate(group, self.average, self.model, scorer)
            except FusetuneError:
                raise
            except Exception as error:  # of vmap, or of memory: one after the other goes on
                logger.warning("Candidates are evaluated one by one: %s", error)
                self.per_pass = 1
                return
            for point, evaluation in zip(group, found, strict=True):
                if point in missing:
                    self.store.put(point, replace(evaluation, read=self._read(point)))

    def _read(self, point: Point) -> int:
        return self.average.bytes_read(point) if isinstance(self.average, Counted) else 0

    def better(self, a: Evaluation, b: Evaluation) -> bool:
        """Whether `a` beats `b`: by the primary metric, then by the loss."""
        return better(a.values, b.values, self.objectives)
