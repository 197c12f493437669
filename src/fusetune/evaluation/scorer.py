"""A model as it stands → its values over one whole split."""

from __future__ import annotations

import functools
import hashlib
import time

import torch
from torch import nn

from fusetune.evaluation.assembly import Assembly
from fusetune.evaluation.batching import IndexedBatch, default_budget, prepare
from fusetune.evaluation.evaluation import Evaluation
from fusetune.tasks.task import Collate, Encoded, Outputs, Task


class Scorer:
    """Evaluates models on one split: sorted batches, inference mode, autocast.

    Args:
        task: Gives losses, predictions and metrics.
        encoded: The tokenised split.
        collate: The task's padding.
        device: Where the models are.
        dtype: float32 for plain evaluation, bfloat16 or float16 for autocast.
        token_budget: Padded tokens per batch; by kind of device if None.
    """

    def __init__(
        self,
        task: Task,
        encoded: Encoded,
        collate: Collate,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        token_budget: int | None = None,
    ) -> None:
        self.task = task
        self.encoded = encoded
        self.device = device
        self.dtype = dtype
        self.collate = collate
        self.batches = prepare(encoded, collate, device, token_budget)
        text = f"{encoded.fingerprint} {dtype} {device.type} {len(self.batches)}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate; the model's training mode is what it was afterwards."""
        started = time.perf_counter()
        was_training = model.training
        model.eval()
        try:
            outputs = self._outputs(model)
        finally:
            model.train(was_training)
        values = self.task.score(outputs, self.encoded.labels)
        return Evaluation(values, outputs, time.perf_counter() - started)

    @functools.cached_property
    def gradient_batches(self) -> list[IndexedBatch]:
        """The split in batches that a backward pass has memory for.

        They are `batches`, unless the split's own budget is for generating texts.
        """
        if self.encoded.budget is None:
            return self.batches
        budget = default_budget(self.device)
        lengths = self.encoded.lengths
        return prepare(self.encoded, self.collate, self.device, budget, sizes=lengths)

    def _outputs(self, model: nn.Module) -> Outputs:
        assembly = Assembly(len(self.encoded))
        for batch in self.batches:
            with torch.inference_mode(), self.autocast():
                part = self.task.outputs(model, batch.inputs)
            assembly.add(batch.rows, part)
        return assembly.whole()

    def autocast(self) -> torch.autocast:
        """The precision that models are evaluated in, as a context."""
        lower = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower)
