"""Outcomes of batches, put at their places in the split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusetune.tasks.task import Outputs


class Assembly:
    """Takes outcomes in any order and gives them in that of the split.

    Args:
        n: Examples of the split.
    """

    def __init__(self, n: int) -> None:
        self._loss = np.full(n, np.nan, dtype=np.float32)
        self._predictions: NDArray[np.float32] | None = None
        self._texts: dict[int, str] = {}
        self._log_probs: dict[int, NDArray[np.float32]] = {}

    def add(self, rows: NDArray[np.int64], part: Outputs) -> None:
        """Take in the outcomes of the examples at `rows`."""
        if self._predictions is None:
            shape = (len(self._loss), part.predictions.shape[1])
            self._predictions = np.full(shape, np.nan, dtype=np.float32)
        self._loss[rows] = part.loss
        self._predictions[rows] = part.predictions
        places = rows.tolist()
        if part.texts is not None:
            self._texts |= dict(zip(places, part.texts, strict=True))
        if part.log_probs is not None:
            self._log_probs |= dict(zip(places, part.log_probs, strict=True))

    def at(self, rows: NDArray[np.int64]) -> Outputs:
        """The outcomes at `rows`, all of which have been taken in."""
        assert self._predictions is not None  # nobody asks before the first batch
        return Outputs(
            self._loss[rows],
            self._predictions[rows],
            tuple(self._texts[i] for i in rows.tolist()) if self._texts else None,
            tuple(self._log_probs[i] for i in rows.tolist()) if self._log_probs else None,
        )

    def whole(self) -> Outputs:
        """The outcomes of the whole split."""
        return self.at(np.arange(len(self._loss)))
