"""`learned`: the learned soup, w by gradient descent.

.. [Wortsman2022] M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned
   models improves accuracy without increasing inference time. ICML 2022, appendix I.
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
from fusetune.members.gradient import differentiable
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.descent import PASS_COST, average_of, backward, cut
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop

STEPS = 4  # the fewest of a pass
LEARNING_RATE = 0.1


def learned(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """Adam on the loss of θ̄(softmax(a)) over the evaluator's split [Wortsman2022].

    One backward pass gives ∂L/∂θ̄ on the model's parameters; its products with the members
    give ∂L/∂w. The start is the uniform average; after each pass over the split w is
    evaluated on the whole of it, and the iterate with the best primary metric is kept
    (equal ones: the lower loss). The gradient is that of evaluation: dropout is off.

    The budget counts what other methods could evaluate at the same cost: one for the start,
    and for each pass `PASS_COST` and one evaluation. It allows ⌊(budget − 1) / 4⌋ passes,
    so with fewer than five evaluations the result is the uniform average. The result's
    `evaluations` are those of whole splits alone; the cost stands in `details`.

    Raises:
        StageError: If the evaluator has no task whose loss can be differentiated.
    """
    k = len(pool)
    best, kept, note = FusionWeights.uniform(k), 0, ""
    passes = max(0, (budget - 1) // (PASS_COST + 1))
    descent = _Descent(evaluator, k, passes, seed)
    evaluator(best)
    for number in range(1, passes + 1):
        if not descent.run_pass():
            note = f"the gradient of pass {number} was not finite"
            passes = number
            break
        if evaluator.better(evaluator(descent.weights), evaluator(best)):
            best, kept = descent.weights, number
    result = FusionResult.of(best, evaluator)
    details = {
        "passes": passes,
        "steps": descent.steps,
        "kept_pass": kept,
        "cost_in_evaluations": 1 + passes * (PASS_COST + 1),
        "cost_rule": f"one pass over the split counts as {PASS_COST} evaluations",
        **({"stopped": note} if note else {}),
    }
    seconds = result.seconds + descent.seconds
    return dataclasses.replace(result, seconds=seconds, details=details)


class _Descent:
    """Minimises the loss over the split by mini-batches, from the uniform average.

    The learning rate falls linearly to zero over all passes, which makes the last iterates
    settle whatever the noise of the batches.

    Attributes:
        weights: w as it stands.
        steps: Steps that were made.
        seconds: What they cost.
    """

    def __init__(self, evaluator: Evaluator, k: int, passes: int, seed: int) -> None:
        self._scorer = evaluator.scorer("The method learned")
        self._average = average_of(evaluator, "learned")
        self._batches = minibatches(self._scorer)
        self._random = np.random.default_rng(seed)
        self._logits = torch.zeros(k, dtype=torch.float64, requires_grad=True)
        self._adam = torch.optim.Adam([self._logits], lr=LEARNING_RATE)
        self._total = max(1, passes * len(self._batches))
        self.weights = FusionWeights.uniform(k)
        self.steps = 0
        self.seconds = 0.0

    def run_pass(self) -> bool:
        """One step per batch, in random order; False if a gradient was not finite."""
        started = time.perf_counter()
        with differentiable(self._average.model):
            finite = all(
                self._step(self._batches[i])
                for i in self._random.permutation(len(self._batches))
            )
        self.seconds += time.perf_counter() - started
        return finite

    def _step(self, batch: IndexedBatch) -> bool:
        gradient = self._gradient(batch)
        if not np.isfinite(gradient).all():
            return False
        w = np.array(self.weights.values)
        self._logits.grad = torch.from_numpy(w * (gradient - w @ gradient))  # of softmax
        self._adam.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - self.steps / self._total)
        self._adam.step()
        self.steps += 1
        softmax = torch.softmax(self._logits.detach(), dim=0)
        self.weights = FusionWeights.normalised(softmax.tolist())
        return True

    def _gradient(self, batch: IndexedBatch) -> NDArray[np.float64]:
        """∂L/∂w of one batch, `k`; over a pass their mean is that of the split's loss."""
        self._average.into_model(self.weights)
        backward(self._scorer, self._average.model, batch.inputs)
        share = len(batch.rows) * len(self._batches) / len(self._scorer.encoded)
        return share * self._average.gradient_products()


def minibatches(scorer: Scorer) -> list[IndexedBatch]:
    """The scorer's batches, cut further if they are fewer than `STEPS`.

    An accelerator takes a small split in one batch, which would be one step per pass.
    """
    if len(scorer.gradient_batches) >= STEPS:
        return scorer.gradient_batches
    return cut(scorer.gradient_batches, -(-len(scorer.encoded) // STEPS))
