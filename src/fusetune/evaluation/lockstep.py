"""One evaluation by several processes: each takes some batches, all get all outcomes."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusetune.evaluation.assembly import Assembly
from fusetune.evaluation.batching import IndexedBatch
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.executors.group import Group
from fusetune.members.fully_sharded import give_up_gathered, is_sharded, keep_outer
from fusetune.tasks.task import OneCall, Outputs

_Part = tuple[NDArray[np.int64], Outputs]


class Lockstep:
    """A scorer's evaluation, shared by a group. Collective: all processes call it at once.

    The batches are the scorer's, so that the outcomes are those of one process alone. The model
    may be spread over the processes: then each call of it is one of all of them. Who has no
    batch left repeats one; and where a task calls the model as often as texts are long, all
    take every batch.

    Args:
        scorer: Of the split; every process has one like it.
        group: The processes.
    """

    def __init__(self, scorer: Scorer, group: Group) -> None:
        self.scorer = scorer
        self.group = group

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate; the model's training mode is what it was afterwards."""
        started = time.perf_counter()
        was_training = model.training
        model.eval()
        try:
            outputs = self._spread(model) if is_sharded(model) else self._copied(model)
        finally:
            model.train(was_training)
        values = self.scorer.task.score(outputs, self.scorer.encoded.labels)
        return Evaluation(values, outputs, time.perf_counter() - started)

    def _copied(self, model: nn.Module) -> Outputs:
        """Each process has the whole model."""
        return self._gathered([self._part(model, batch) for batch in self._mine])

    def _spread(self, model: nn.Module) -> Outputs:
        """Each process has some rows of each parameter."""
        give_up_gathered(model)
        try:
            if isinstance(self.scorer.task, OneCall):
                parts = [self._part(model, batch) for batch in self._as_many]
                return self._gathered(parts[: len(self._mine)])
            keep_outer(model)
            with torch.no_grad(), self.scorer.autocast():  # gathers what is outside of layers
                self.scorer.task.loss(model, self.scorer.batches[-1].inputs)
            return _assembled(
                len(self.scorer.encoded),
                [self._part(model, batch) for batch in self.scorer.batches],
            )
        finally:
            give_up_gathered(model)

    @property
    def _mine(self) -> list[IndexedBatch]:
        return self.scorer.batches[self.group.rank :: self.group.size]

    @property
    def _as_many(self) -> list[IndexedBatch]:
        """This process's batches, and the last one again where others have one more."""
        most = -(-len(self.scorer.batches) // self.group.size)
        return [*self._mine, self.scorer.batches[-1]][:most]

    def _part(self, model: nn.Module, batch: IndexedBatch) -> _Part:
        # Not in inference mode: FSDP keeps tensors that a training goes on with.
        with torch.no_grad(), self.scorer.autocast():
            return batch.rows, self.scorer.task.outputs(model, batch.inputs)

    def _gathered(self, parts: list[_Part]) -> Outputs:
        found = [part for own in self.group.gather(parts) for part in own]
        return _assembled(len(self.scorer.encoded), found)


def _assembled(n: int, parts: Iterable[_Part]) -> Outputs:
    assembly = Assembly(n)
    for rows, part in parts:
        assembly.add(rows, part)
    return assembly.whole()
