"""Gradients at a fused model, for methods that follow them; no method itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusetune.errors import StageError
from fusetune.evaluation.batching import IndexedBatch
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.members.average import Average

PASS_COST = 3  # evaluations: forward, and twice as much backward


def average_of(evaluator: Evaluator, method: str) -> Average:
    """The evaluator's average, which gives gradient products too.

    Raises:
        StageError: If it is a user's own, which does not, or one that is not linear in w.
    """
    if not isinstance(evaluator.average, Average):
        raise StageError(
            f"The method {method} needs an average that gives gradient products.",
            hint="Make it with fusetune.members.average.plan.",
        )
    if not evaluator.average.linear:
        raise StageError(
            f"The method {method} follows the gradient of an average that is linear in w; "
            "factors of adapters averaged apart are not.",
            hint=f"Write fuse.adapters: exact, or leave {method} out of fuse.methods.",
        )
    return evaluator.average


def backward(scorer: Scorer, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Leave the gradient of the task's mean loss on one batch in the model's parameters."""
    for parameter in model.parameters():
        parameter.grad = None
    # Not in float16: its small gradients would be lost without a scale for the loss.
    lower = scorer.dtype is torch.bfloat16
    with (
        torch.enable_grad(),
        torch.autocast(scorer.device.type, torch.bfloat16, enabled=lower),
    ):
        loss = scorer.task.loss(model, inputs)
    loss.backward()


def cut(batches: Iterable[IndexedBatch], rows: int) -> list[IndexedBatch]:
    """The same examples in batches of at most `rows`, as equal as can be."""
    found: list[IndexedBatch] = []
    for batch in batches:
        parts = -(-len(batch.rows) // rows)
        for chosen in np.array_split(np.arange(len(batch.rows)), parts):
            part = slice(int(chosen[0]), int(chosen[-1]) + 1)
            inputs = {name: tensor[part] for name, tensor in batch.inputs.items()}
            found.append(IndexedBatch(batch.rows[part], inputs))
    return found


def passes(
    batches: list[IndexedBatch], rows: float, random: np.random.Generator
) -> list[IndexedBatch]:
    """Batches in random order, pass after pass, of at most `rows` examples in all."""
    planned: list[IndexedBatch] = []
    order: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    while True:
        if not len(order):
            order = random.permutation(len(batches))
        batch, order = batches[order[0]], order[1:]
        rows -= len(batch.rows)
        if rows < 0:
            return planned
        planned.append(batch)
