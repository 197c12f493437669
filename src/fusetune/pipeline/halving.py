"""Which of several learning rates a full training goes on with.

What a light or short trial bears says little about the rate that suits the training of the
whole model: frozen layers cannot unlearn, and few steps reward large ones. So the training is
begun with half the rate as well, and the two are compared by the first members that have seen
as much of the data as the trial, on the same validation rows. The lower rate goes on unless it
is clearly worse: it has had fewer effective steps so far, and stays nearer to the pretrained
weights. Where it is clearly better, half of it is tried next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusetune.pipeline.best_trial import ERRORS


@dataclass(frozen=True, slots=True)
class Attempt:
    """A full training as far as the member by which it is judged.

    Attributes:
        learning_rate: Its own.
        value: Of the primary metric on validation; None if it diverged before.
        promised: What the search's trial had reached; None where nothing was promised.
        kept: Whether it keeps the promise.
        samples: Of the value, on bootstrap samples of the rows that all attempts share;
            empty where the outcomes are not known. Records are without them.
    """

    learning_rate: float
    value: float | None
    promised: float | None
    kept: bool
    samples: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """What became of it."""
        reached = "diverged" if self.value is None else f"reached {self.value:.4f}"
        return f"{reached} with the learning rate {self.learning_rate:.4g}"


def verdict(lower: Attempt, higher: Attempt, sign: float) -> int:
    """Whether the lower rate is clearly better, 1, clearly worse, -1, or neither, 0.

    Clearly is by more than `ERRORS` standard errors of the paired difference.

    Args:
        lower: With the lower rate.
        higher: The best so far.
        sign: 1 if the primary metric is to be maximised, else -1.
    """
    if lower.value is None:
        return -1
    if higher.value is None:
        return 1
    difference, error = sign * (lower.value - higher.value), 0.0
    if lower.samples and higher.samples:
        paired = np.subtract(lower.samples, higher.samples)
        error = float(paired[np.isfinite(paired)].std())
    return int(np.sign(difference)) if abs(difference) > ERRORS * error else 0


def settled(judged: Sequence[Attempt], sign: float, retries: int) -> int | None:
    """Which attempt is to be trained to its end; None while there is one more to be judged.

    Args:
        judged: With ever lower rates.
        sign: As in `verdict`.
        retries: How many there may be after the first.
    """
    best = 0
    for number in range(1, len(judged)):
        found = verdict(judged[number], judged[best], sign)
        if found < 0:
            return best
        best = number
        if found == 0 and judged[number].kept:
            return best
    return best if len(judged) > retries else None
