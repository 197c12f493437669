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

from fusetune.evaluation.evaluator import Evaluator
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
    scorer = evaluator.scorer("The method twa")
    k, n = len(pool), len(scorer.encoded)
    best: Point = FusionWeights.uniform(k)
    evaluator(best)
    started = time.perf_counter()
    checks = max(0, min(CHECKS, budget - 1))
    rows = min((budget - 1 - checks) * n / PASS_COST, MOST_PASSES * len(training.encoded))
    batches = passes(cut(training.batches, ROWS), rows, np.random.default_rng(seed))
    span = _Span(triangular_factor(average.member_tiles(), k), len(batches))
    computing = time.perf_counter() - started
    ends = {round(len(batches) * (i + 1) / checks) for i in range(checks)} if checks else set()
    kept = 0
    stopped = ""
    for step, batch in enumerate(batches, 1):
        started = time.perf_counter()
        with differentiable(average.model):
            average.into_model(span.coefficients)
            backward(training, average.model, batch.inputs)
            found = average.gradient_products()
        finite = bool(np.isfinite(found).all())
        if finite:
            span.step(found)
        computing += time.perf_counter() - started
        if not finite:
            stopped = f"the gradient of step {step} was not finite"
            break
        if step in ends and evaluator.better(evaluator(span.coefficients), evaluator(best)):
            best, kept = span.coefficients, step
    result = FusionResult.of(best, evaluator)
    used = sum(len(batch.rows) for batch in batches)
    details = {
        "steps": len(batches),
        "kept_step": kept,
        "training_rows": used,
        "cost_in_evaluations": evaluator.evaluations + PASS_COST * used / n,
        **({"stopped": stopped} if stopped else {}),
    }
    return dataclasses.replace(result, seconds=result.seconds + computing, details=details)


class _Span:
    """Adam in an orthonormal basis of the members' span.

    With R = U S Vᵀ the coordinates of Θᵀ a are y = S Vᵀ a. Directions whose singular value
    is zero to rounding are left out: members that are equal span less than k dimensions.

    Attributes:
        coefficients: a, as it stands.
    """

    def __init__(self, factor: NDArray[np.float64], steps: int) -> None:
        k = len(factor)
        _, singular, right = np.linalg.svd(factor)
        used = singular > TINY * singular[0]
        self._into = singular[used, None] * right[used]  # a → y
        self._back = (right[used] / singular[used, None]).T  # y → a, and ∂L/∂a → ∂L/∂y
        centre = np.full(k, 1.0 / k)
        ways = self._into @ (np.eye(k) - centre[:, None])  # from the average to each member
        self._rate = LEARNING_RATE * float(np.linalg.norm(ways, axis=0).mean())
        self._y = torch.tensor(self._into @ centre, dtype=torch.float64, requires_grad=True)
        self._adam = torch.optim.Adam([self._y], lr=self._rate)
        self._steps, self._done = steps, 0
        self.coefficients = Combination(tuple(map(float, centre)))

    def step(self, products: NDArray[np.float64]) -> None:
        """Move by one gradient, given as its products with the members, `k`."""
        self._y.grad = torch.from_numpy(self._back.T @ products)
        self._adam.param_groups[0]["lr"] = self._rate * (1.0 - self._done / self._steps)
        self._adam.step()
        self._done += 1
        a = self._back @ self._y.detach().numpy()
        self.coefficients = Combination(tuple(map(float, a)))
