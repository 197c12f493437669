"""What the mixture Σ w_i p_i of the members' token probabilities says of θ̄(w)'s loss.

p_i are member i's probabilities of the reference tokens of a split, one number per token,
known after k evaluations. −log Σ w_i p_i is the loss of the members as an ensemble, and to
first order in their distances that of the fused model. It says nothing of texts that are
generated, and so nothing of metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.lowest import lowest
from fusetune.objective import LOSS

BLOCK = 1 << 21  # probabilities that are mixed at once; 16 MB


class TokenEnsemble:
    """The loss of mixtures of k members' probabilities, t tokens in all.

    Args:
        log_probs: Of each member, `t`: log p of every reference token; None for a member
            that could not be evaluated.

    Raises:
        ValueError: If no member was evaluated, or they differ in their tokens.
    """

    def __init__(self, log_probs: Sequence[NDArray[np.float32] | None]) -> None:
        known = [row for row in log_probs if row is not None]
        if not known or len({row.shape for row in known}) != 1:
            raise ValueError("log_probs need one member at least, and the same tokens of all")
        nothing = np.full_like(known[0], np.nan)
        rows = np.stack([nothing if row is None else row for row in log_probs])  # k x t
        self._usable = np.asarray(np.isfinite(rows).all(axis=1))  # k
        rows = np.where(self._usable[:, None], rows, -np.inf).astype(np.float64)
        # Relative to the best member, so that no probability is too small for a number.
        self._best = rows.max(axis=0) if self._usable.any() else np.zeros(rows.shape[1])
        self._relative = np.exp(rows - self._best)

    def minimiser(self) -> NDArray[np.float64] | None:
        """The mixture with the lowest loss, `k`; None if no member has finite numbers.

        The loss is convex in w. Members whose numbers are not finite get no weight.
        """
        usable = np.flatnonzero(self._usable)
        if len(usable) == 0:
            return None
        p = self._relative[usable]
        tiny = np.finfo(np.float64).tiny

        def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            mixed = np.maximum(w @ p, tiny)
            return -float(np.log(mixed).mean()), -(p / mixed).mean(axis=1)

        weights = np.zeros(len(self._usable))
        weights[usable] = lowest(loss, len(usable))
        return weights

    def predict(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The loss by its name, `b` values; nothing of the metrics.

        Exact for a single member. A mixture with a member whose numbers are not finite
        is NaN.

        Args:
            weights: `b x k`; rows on the simplex.
        """
        weights = np.asarray(weights, dtype=np.float64)
        size = max(1, BLOCK // max(1, len(self._best)))
        blocks = [
            self._loss(weights[start : start + size]) for start in range(0, len(weights), size)
        ]
        return {LOSS.name: np.concatenate([np.empty(0), *blocks])}

    def _loss(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        mixed = np.maximum(weights @ self._relative, np.finfo(np.float64).tiny)  # b x t
        spoilt = (weights[:, ~self._usable] > 0.0).any(axis=1)
        losses = -(np.log(mixed).mean(axis=1) + self._best.mean())
        return np.asarray(np.where(spoilt, np.nan, losses))
