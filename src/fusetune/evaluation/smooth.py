"""The primary metric with as little noise as can be had, also on bootstrap samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.bootstrap import bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer

SAMPLES = 500
FEWEST = 100
BLOCK = 1 << 21  # predictions that are scored at once
MOST = 1 << 27  # predictions that all samples together may score


@runtime_checkable
class Smooth(Protocol):
    """A task whose primary metric has a smoothed form."""

    def smooth(
        self, predictions: NDArray[np.float32], labels: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Of B models' predictions, `B x n x c`; natural sign; None if there is none."""
        ...


class Score:
    """The smoothed primary metric, or the metric itself where there is no smoothed form.

    Larger is better, whatever the metric's direction.

    Args:
        evaluator: Of the split.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.primary = evaluator.primary
        self._scorer = evaluator.score if isinstance(evaluator.score, Scorer) else None

    def __call__(self, evaluation: Evaluation) -> float:
        """Of one evaluation."""
        if self._scorer is not None and evaluation.outputs is not None:
            found = self._smooth(evaluation.outputs.predictions[None])
            if found is not None:
                return float(found[0])
        return self.primary.sign * evaluation.values[self.primary.name]

    def of_shifts(
        self, base: Evaluation, moved: Sequence[Evaluation], steps: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """What changes of a model are worth together, from what each does alone, `b`.

        Predictions are taken to be linear: z + Σ_d t_d (z_d − z), z the model's own, z_d with
        change d made in full. None where predictions are not logits, or the evaluator knows
        no task.

        Args:
            base: Of the model.
            moved: With each of D changes.
            steps: `b x D`; how far each change is made, t.
        """
        outcomes = [e.outputs for e in (base, *moved)]
        if self._scorer is None or any(o is None or o.log_probs is not None for o in outcomes):
            return None
        stack = np.stack([o.predictions for o in outcomes if o is not None])
        shifts = (stack[1:] - stack[0]).reshape(len(moved), -1)
        size = max(1, BLOCK // stack[0].size)
        found = []
        for start in range(0, len(steps), size):
            part = steps[start : start + size].astype(np.float32) @ shifts
            found.append(self._of_predictions(stack[0] + part.reshape(-1, *stack[0].shape)))
        return np.concatenate([np.empty(0), *found])

    def samples(
        self, evaluations: Sequence[Evaluation], seed: int
    ) -> NDArray[np.float64] | None:
        """Of M evaluations on the same bootstrap samples of the rows, `B x M`.

        B is `SAMPLES`, fewer where the split is large. None without per-example outcomes.
        """
        if self._scorer is None or any(e.outputs is None for e in evaluations):
            return None
        outputs = [e.outputs for e in evaluations if e.outputs is not None]
        labels, n = self._scorer.encoded.labels, len(outputs[0].loss)
        stack = np.stack([o.predictions for o in outputs])
        number = int(np.clip(MOST // stack.size, FEWEST, SAMPLES))
        counts = bootstrap_counts(n, number, seed)
        if self._smooth(stack[:1]) is None:
            task, name = self._scorer.task, self.primary.name
            columns = [task.resample(o, labels, counts)[name] for o in outputs]
            return self.primary.sign * np.stack(columns, axis=1)
        drawn = (np.repeat(np.arange(n), c.astype(np.int64)) for c in counts)
        rows = [self._smooth(stack[:, chosen], labels[chosen]) for chosen in drawn]
        return np.stack([row for row in rows if row is not None])

    def _of_predictions(self, predictions: NDArray[np.float32]) -> NDArray[np.float64]:
        assert self._scorer is not None
        found = self._smooth(predictions)
        if found is not None:
            return found
        labels = self._scorer.encoded.labels
        values = self._scorer.task.score_many(predictions, labels)
        return np.asarray(self.primary.sign * values[self.primary.name])

    def _smooth(
        self, predictions: NDArray[np.float32], labels: NDArray[Any] | None = None
    ) -> NDArray[np.float64] | None:
        assert self._scorer is not None
        if not isinstance(self._scorer.task, Smooth):
            return None
        labels = self._scorer.encoded.labels if labels is None else labels
        found = self._scorer.task.smooth(predictions, labels)
        return None if found is None else self.primary.sign * found
