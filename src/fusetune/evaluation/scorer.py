"""A model as it stands → its values over one whole split."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import torch
from torch import nn

from fusetune.evaluation.batching import prepare
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

    def _outputs(self, model: nn.Module) -> Outputs:
        n = len(self.encoded)
        loss = np.empty(n, dtype=np.float32)
        predictions: np.ndarray | None = None
        lower = self.dtype is not torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, enabled=lower),
        ):
            for batch in self.batches:
                part = self.task.outputs(model, batch.inputs)
                if predictions is None:
                    predictions = np.empty((n, part.predictions.shape[1]), dtype=np.float32)
                loss[batch.rows] = part.loss
                predictions[batch.rows] = part.predictions
        assert predictions is not None  # splits are never empty
        return Outputs(loss, predictions)
