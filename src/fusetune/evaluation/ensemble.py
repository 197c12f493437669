"""What the mixture Σ w_i z_i of the members' predictions says about θ̄(w), at no cost.

z_i are member i's predictions (logits) on every example of a split, known after k
evaluations. To first order in the distances of the members, the fused model's predictions
are that mixture [Wortsman2022].

.. [Wortsman2022] M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned
   models improves accuracy without increasing inference time. ICML 2022, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.lowest import lowest
from fusetune.evaluation.token_ensemble import TokenEnsemble
from fusetune.members.weights import FusionWeights
from fusetune.tasks.task import Outputs, Task

BLOCK = 1 << 21  # predictions that are mixed at once; 8 MB

Correction = Callable[[slice], NDArray[np.float32]]
"""Rows of the points → what to add to their mixtures, `n c` numbers each."""


@runtime_checkable
class Differentiable(Protocol):
    """A task whose loss can be computed, with its gradient, from predictions."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each of n examples, `n`, from predictions `n x c`."""
        ...


class Mixture(Protocol):
    """What k members' outcomes, mixed, say of θ̄(w)."""

    def predict(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Objectives by name, `b` values each, from weights `b x k`; some may be missing."""
        ...

    def minimiser(self) -> NDArray[np.float64] | None:
        """The mixture with the lowest loss, `k`; None if it cannot be found."""
        ...


def mixture_of(evaluator: Evaluator, k: int, members: Sequence[int] | None = None) -> Mixture:
    """The mixture of the k members, each of which is evaluated.

    It is one of token probabilities where outcomes have them, else one of predictions.

    Args:
        evaluator: Of the split.
        k: Number of members.
        members: Those that can be evaluated, at least one; the outcomes of the others
            count as not finite. All of them if None.

    Raises:
        StageError: If the evaluator's score knows no task.
    """
    scorer = evaluator.scorer("The ensemble of the members' predictions")
    found: dict[int, Outputs] = {}
    for i in range(k) if members is None else members:
        outputs = evaluator(FusionWeights.one_hot(i, k)).outputs
        assert outputs is not None  # a Scorer always gives them
        found[i] = outputs
    first = next(iter(found.values()))
    if first.log_probs is not None:
        tokens = {i: np.concatenate(o.log_probs or ()) for i, o in found.items()}
        return TokenEnsemble([tokens.get(i) for i in range(k)])
    nothing = np.full_like(first.predictions, np.nan)
    predictions = [found[i].predictions if i in found else nothing for i in range(k)]
    return Ensemble(np.stack(predictions), scorer.encoded.labels, scorer.task)


class Ensemble:
    """Values of mixtures of k members' predictions on one split.

    Args:
        predictions: `k x n x c`, as in `Outputs`.
        labels: `n`.
        task: Scores predictions.
    """

    def __init__(
        self, predictions: NDArray[np.float32], labels: NDArray[Any], task: Task
    ) -> None:
        self.predictions = np.asarray(predictions, dtype=np.float32)
        self.labels = labels
        self.task = task
        k, self._n, self._c = self.predictions.shape
        flat = self.predictions.reshape(k, -1)
        self._broken: NDArray[np.bool_] = np.logical_not(np.isfinite(flat).all(axis=1))  # k
        self._flat = np.where(self._broken[:, None], np.float32(0.0), flat)

    def minimiser(self) -> NDArray[np.float64] | None:
        """The mixture with the lowest loss, `k`; None if the task's loss has no gradient.

        Cross entropy and squared error of a mixture are convex in w: the minimum is global,
        and `lowest` finds it. Members whose predictions are not finite get no weight; None
        if there are no others.
        """
        usable = np.flatnonzero(~self._broken)
        if len(usable) == 0 or not isinstance(self.task, Differentiable):
            return None
        losses = self.task.losses
        z = torch.as_tensor(self._flat[usable], dtype=torch.float64)
        labels = torch.as_tensor(self.labels)

        def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            point = torch.tensor(w, dtype=torch.float64, requires_grad=True)
            value = losses((point @ z).view(self._n, self._c), labels).mean()
            (gradient,) = torch.autograd.grad(value, point)
            return value.item(), gradient.numpy()

        weights = np.zeros(len(self.predictions))
        weights[usable] = lowest(loss, len(usable))
        return weights

    def predict(
        self, weights: NDArray[np.float64], correction: Correction | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Every objective by name, `b` values each, natural sign.

        Exact for a single member. A mixture with a member whose predictions are not
        finite is NaN.

        Args:
            weights: `b x k`; rows on the simplex.
            correction: What is known better than the mixtures say.
        """
        weights = np.asarray(weights, dtype=np.float64)
        size = max(1, BLOCK // (self._n * self._c))
        names = [objective.name for objective in self.task.objectives]
        blocks = []
        for start in range(0, len(weights), size):
            rows = slice(start, start + size)
            mixed = self.mixed(weights[rows])
            if correction is not None:
                mixed += correction(rows)
            blocks.append(self._score(weights[rows], mixed))
        return {n: np.concatenate([np.empty(0), *(b[n] for b in blocks)]) for n in names}

    def mixed(self, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """Mixtures of the members' predictions, `b x n c`; what is not finite counts as 0."""
        return np.asarray(weights.astype(np.float32) @ self._flat)

    def distances(self) -> NDArray[np.float64]:
        """Root mean square difference of the predictions of each two members, `k x k`.

        NaN for members whose predictions are not finite.
        """
        flat = self._flat.astype(np.float64)
        inner = flat @ flat.T / flat.shape[1]
        own = np.diag(inner)
        found = np.sqrt(np.maximum(own[:, None] + own - 2.0 * inner, 0.0))
        found[self._broken, :] = found[:, self._broken] = np.nan
        return np.asarray(found)

    def _score(
        self, weights: NDArray[np.float64], mixed: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float64]]:
        values = self.task.score_many(mixed.reshape(-1, self._n, self._c), self.labels)
        spoilt = (weights[:, self._broken] > 0.0).any(axis=1)
        return {name: np.where(spoilt, np.nan, value) for name, value in values.items()}
