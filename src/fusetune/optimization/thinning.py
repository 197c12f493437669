"""Which of very many evaluations a surrogate is conditioned on.

A Gaussian process costs n³; a study may have ten thousand trials. Most of them say the same
about the regions where nothing is to be gained any more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST = 256  # points of a surrogate whose hyper-parameters are found by gradients
MOST_FUSION = 2048  # of one with hyper-parameters from a grid


def informative(
    value: NDArray[np.float64], most: int, always: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The rows to keep, in order: some always, then the best by half, and the newest.

    A function of the history alone, so that a resumed study goes on alike. Up to `most`
    rows, all are kept.

    Args:
        value: `n`; higher is better.
        most: How many rows at most, unless `always` has more.
        always: Rows that are kept in any case, such as a Pareto front.
    """
    n = len(value)
    if n <= most:
        return np.arange(n)
    kept = np.zeros(n, dtype=bool)
    if always is not None:
        kept[always] = True
    best = np.argsort(-value, kind="stable")
    kept[best[: max(0, (most - int(kept.sum())) // 2)]] = True
    newest = np.flatnonzero(~kept)
    room = max(0, most - int(kept.sum()))
    kept[newest[len(newest) - room :]] = True
    return np.flatnonzero(kept)
