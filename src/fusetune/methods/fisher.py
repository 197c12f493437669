"""`fisher`: every parameter averaged with its diagonal Fisher information as weight.

.. [Matena2022] M. Matena, C. Raffel. Merging Models with Fisher-Weighted Averaging.
   NeurIPS 2022, equation 4.
.. [Liu2023] H. Liu et al. Sophia: A Scalable Stochastic Second-order Optimizer for Language
   Model Pre-training. ICLR 2024, section 2.3 (Gauss-Newton-Bartlett estimator).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusetune.errors import StageError
from fusetune.evaluation.batching import IndexedBatch
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.members.average import Average
from fusetune.members.gradient import differentiable, gradients
from fusetune.members.points import OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.quantised_average import QuantisedAverage
from fusetune.members.weights import FusionWeights
from fusetune.methods.descent import PASS_COST, average_of, backward, cut, passes
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin, required
from fusetune.optimization.study import Loop

ROWS = 16  # of a batch: more give a steadier gradient, fewer give more of them
MOST_ROWS = 1024  # training examples per member; the paper saw little gain from more
FLOOR = 1e-6  # of the mean information: what no example has touched is averaged plainly


def fisher(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """Σ_i F_i θ_i / Σ_i F_i, F_i the diagonal Fisher information of member i [Matena2022].

    F_i = E_x E_y∼p(y|x,θ_i) (∂ log p / ∂θ)², from training examples whose labels are drawn
    from the member's own predictions. For such labels the squared gradient of a batch of b,
    times b, has the same expectation as the mean of b squared gradients, so that each batch
    needs one backward pass [Liu2023]. All members see the same examples.

    The budget counts what other methods could evaluate at the same cost: an example of one
    member is `PASS_COST` / n evaluations, n the rows of the validation split. Memory: four
    models besides the members.

    Raises:
        StageError: If the training data are not known, or the evaluator's average is not
            of this package, or the base is quantised.
    """
    training = required(origin, "fisher", "the training data").training()
    average = average_of(evaluator, "fisher")
    if isinstance(average, QuantisedAverage):
        raise StageError(
            "The method fisher needs gradients with respect to the base's weights, and these "
            "are quantised.",
            hint="Leave fisher out, or load the base in float32, bfloat16 or float16.",
        )
    if average.binding is not None and average.binding.converted:
        raise StageError(
            "The method fisher needs a gradient for each tensor of the members' files, and "
            f"Transformers converts {len(average.binding.waits_for_others)} of them on loading "
            f"({min(average.binding.waits_for_others)} and so on).",
            hint="Leave fisher out of the methods; the others take any architecture.",
        )
    scorer = evaluator.scorer("The method fisher")
    k, n = len(pool), len(scorer.encoded)
    started = time.perf_counter()
    affordable = (budget - 1) * n / PASS_COST / k
    rows = min(MOST_ROWS, len(training.encoded), affordable)
    batches = cut(training.gradient_batches, ROWS)
    planned = passes(batches, rows, np.random.default_rng(seed)) or batches[:1]
    own = OwnModel.of(_weighted(pool, average, training, planned, seed))
    computing = time.perf_counter() - started
    result = FusionResult.of(own, evaluator)
    used = sum(len(batch.rows) for batch in planned)
    details = {
        "examples_per_member": used,
        "cost_in_evaluations": 1 + PASS_COST * used * k / n,
    }
    return dataclasses.replace(result, seconds=result.seconds + computing, details=details)


def _weighted(
    pool: MemberPool,
    average: Average,
    training: Scorer,
    batches: Sequence[IndexedBatch],
    seed: int,
) -> dict[str, Tensor]:
    """The weighted average, tensor by tensor, in the members' dtypes."""
    k = len(pool)
    tensors = pool.tensors
    above: dict[str, Tensor] = {}
    below: dict[str, Tensor] = {}
    for i in range(k):
        average.into_model(FusionWeights.one_hot(i, k))
        information = _information(average, training, batches, seed)
        for name, value in information.items():
            member = pool.load_tensor(i, name).to(value)
            above[name] = above.get(name, 0.0) + value * member
            below[name] = below.get(name, 0.0) + value
    return {n: (above[n] / below[n]).to(tensors[n].dtype) for n in above}


def _information(
    average: Average, training: Scorer, batches: Sequence[IndexedBatch], seed: int
) -> dict[str, Tensor]:
    """The diagonal of the model's Fisher information, float32 on the CPU, never zero."""
    model = average.model
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.zeros(info.shape)
        for name, info in average.pool.tensors.items()
        if info.dtype.is_floating_point
    }
    with differentiable(model):
        for batch in batches:
            inputs = training.task.with_drawn_labels(model, batch.inputs, generator)
            backward(training, model, inputs)
            for name, gradient in gradients(average.targets):
                found[name] += len(batch.rows) * gradient.float().cpu().square()
    total = sum(float(value.sum()) for value in found.values())
    floor = max(FLOOR * total / sum(v.numel() for v in found.values()), torch.finfo().tiny)
    return {name: value + floor for name, value in found.items()}
