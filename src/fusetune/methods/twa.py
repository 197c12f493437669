"""`twa`: trainable weight averaging, coefficients trained on training batches.

.. [Li2022] T. Li et al. Trainable Weight Averaging: Efficient Training by Optimizing
   Historical Solutions. ICLR 2023 (arXiv 2205.13104), algorithm 1.
.. [Kingma2015] D. Kingma, J. Ba. Adam: A Method for Stochastic Optimization. ICLR 2015.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from numpy.typing import NDArray

from fusetune.evaluation.batching import IndexedBatch
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.members.average import Average
from fusetune.members.basis import triangular_factor
from fusetune.members.gradient import differentiable
from fusetune.members.points import Combination, Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.descent import PASS_COST, average_of, backward, cut, passes
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin, required
from fusetune.optimization.study import Loop

CHECKS = 8  # evaluations on validation, evenly over the steps
ROWS = 32  # of a batch
MOST_PASSES = 10  # over the training split; then the coefficients have settled
LEARNING_RATE = 0.1  # per coordinate, of the members' mean distance from their average
TINY = 1e-7  # singular values below this share of the largest are rounding


def twa(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """Adam on the training loss in the members' span, from the uniform average [Li2022].

    Coordinates y are those in an orthonormal basis of the span, which is never formed:
    y = R a with R from a QR factorisation of the members by blocks and a their coefficients,
    of any sign; ∂L/∂y = R⁻ᵀ Θ ∂L/∂θ is one backward pass and its products with the members.
    Dropout is off. The learning rate falls linearly to zero.

    The coefficients are evaluated on validation `CHECKS` times on the way, and the best ones
    are kept, the uniform average among them. The budget counts what other methods could
    evaluate at the same cost: a step on b training rows is `PASS_COST` · b / n evaluations,
    n the rows of the validation split.

    Raises:
        StageError: If the training data are not known, or the evaluator's average gives
            no gradient products.
    """
    training = required(origin, "twa", "the training data").training()
    average = average_of(evaluator, "twa")
    k, n = len(pool), len(evaluator.scorer("The method twa").encoded)
    best: Point = FusionWeights.uniform(k)
    evaluator(best)
    checks = max(0, min(CHECKS, budget - 1))
    rows = min((budget - 1 - checks) * n / PASS_COST, MOST_PASSES * len(training.encoded))
    batches = passes(cut(training.gradient_batches, ROWS), rows, np.random.default_rng(seed))
    ends = {round(len(batches) * (i + 1) / checks) for i in range(checks)} if checks else set()
    span = _Span(average, training, len(batches))
    kept = 0
    for step, batch in enumerate(batches, 1):
        if not span.step(batch):
            break
        if step in ends and evaluator.better(evaluator(span.coefficients), evaluator(best)):
            best, kept = span.coefficients, step
    result = FusionResult.of(best, evaluator)
    used = sum(len(batch.rows) for batch in batches[: span.steps])
    details = {
        "steps": span.steps,
        "kept_step": kept,
        "training_rows": used,
        "cost_in_evaluations": evaluator.evaluations + PASS_COST * used / n,
        **({} if span.steps == len(batches) else {"stopped": "a gradient was not finite"}),
    }
    return dataclasses.replace(result, seconds=result.seconds + span.seconds, details=details)


class _Span:
    """Adam in an orthonormal basis of the members' span.

    With R = U S Vᵀ the coordinates of Θᵀ a are y = S Vᵀ a. Directions whose singular value
    is zero to rounding are left out: members that are equal span less than k dimensions.

    Attributes:
        coefficients: a, as it stands.
        steps: Steps that were made.
        seconds: What they and the basis cost.
    """

    def __init__(self, average: Average, training: Scorer, planned: int) -> None:
        started = time.perf_counter()
        self._average, self._training, self._planned = average, training, planned
        k = len(average.pool.members)
        _, singular, right = np.linalg.svd(triangular_factor(average.member_tiles(), k))
        used = singular > TINY * singular[0]
        into: NDArray[np.float64] = singular[used, None] * right[used]  # a → y
        self._back = (right[used] / singular[used, None]).T  # y → a, and ∂L/∂a → ∂L/∂y
        centre = np.full(k, 1.0 / k)
        ways = into @ (np.eye(k) - centre[:, None])  # from the average to each member
        self._rate = LEARNING_RATE * float(np.linalg.norm(ways, axis=0).mean())
        self._y = torch.tensor(into @ centre, dtype=torch.float64, requires_grad=True)
        self._adam = torch.optim.Adam([self._y], lr=self._rate)
        self.coefficients = Combination(tuple(map(float, centre)))
        self.steps = 0
        self.seconds = time.perf_counter() - started

    def step(self, batch: IndexedBatch) -> bool:
        """Move by the gradient of one batch; False if it was not finite."""
        started = time.perf_counter()
        with differentiable(self._average.model):
            self._average.into_model(self.coefficients)
            backward(self._training, self._average.model, batch.inputs)
            products = self._average.gradient_products()
        finite = bool(np.isfinite(products).all())
        if finite:
            self._y.grad = torch.from_numpy(self._back.T @ products)
            self._adam.param_groups[0]["lr"] = self._rate * (1.0 - self.steps / self._planned)
            self._adam.step()
            self.steps += 1
            a = self._back @ self._y.detach().numpy()
            self.coefficients = Combination(tuple(map(float, a)))
        self.seconds += time.perf_counter() - started
        return finite
