"""Whether an outer trial can still win, from the first evaluations of its inner search.

Values are to be maximised throughout. Notation: k members, n evaluated points, W: `n x k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusetune.objective import Objective
from fusetune.optimization import simplex
from fusetune.optimization.prior import Prior
from fusetune.optimization.simplex import Points

SCREENED = 1000  # points by which the prior's maximum is looked for, and again in each round
ROUNDS = 3
BEST = 16  # points that a round starts from

LEAST_ENDED = 2
"""So many inner searches have to be run to their end before one is ended early."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the first evaluations of a trial's inner search say of its end.

    Attributes:
        seen: The highest value that was evaluated.
        predicted: The highest that the prior predicts for any w.
        error: By how much an evaluated average surpassed the prior at most; 0 if none did.
    """

    seen: float
    predicted: float
    error: float


@dataclass(frozen=True, slots=True)
class Mark:
    """What a trial has to reach, and what earlier trials say of how far one comes.

    Attributes:
        best: The highest value of an earlier trial.
        gain: How far the end of an inner search was above `Promise.seen` at most.
        surprise: How far it was above both `seen` and `predicted` at most; 0 if it never was.
    """

    best: float
    gain: float
    surprise: float

    @classmethod
    def of(cls, values: Sequence[float], ended: Sequence[tuple[Promise, float]]) -> Mark | None:
        """The mark that earlier trials set; None if too few tell how far one comes.

        Args:
            values: Of all earlier trials.
            ended: Promise and value of those whose inner search was run to its end.
        """
        if len(ended) < LEAST_ENDED:
            return None
        return cls(
            best=max(values),
            gain=max(value - p.seen for p, value in ended),
            surprise=max(0.0, *(value - max(p.seen, p.predicted) for p, value in ended)),
        )

    def out_of_reach(self, promise: Promise) -> bool:
        """Whether a trial cannot win by any of two estimates, both of them generous.

        Its best evaluation with the largest gain that the rest of a search ever brought; and
        the prior's maximum with the prior's error here and the largest surprise before.
        """
        by_gain = promise.seen + max(0.0, self.gain)
        by_prior = max(promise.seen, promise.predicted) + promise.error + self.surprise
        return max(by_gain, by_prior) < self.best


def promise(
    prior: Prior, W: Points, y: NDArray[np.float64], objective: Objective, seed: int
) -> Promise:
    """The promise of a trial after its first evaluations.

    Args:
        prior: Of the trial's members.
        W: The points evaluated, at least one.
        y: `n`; their values, to be maximised, finite.
        objective: Whose values these are.
        seed: Of the points that are screened.
    """

    def predict(points: Points) -> NDArray[np.float64]:
        values = prior.values(points, [objective])[:, 0]
        return np.where(np.isfinite(values), values, -np.inf)

    k = W.shape[1]
    rng = np.random.default_rng(seed)
    points = np.vstack([W, simplex.faces(SCREENED, k, rng)])
    values = predict(points)
    for _ in range(ROUNDS):
        best = points[np.argsort(-values, kind="stable")[:BEST]]
        more = np.vstack(
            [
                simplex.around(best, SCREENED // 2, rng),
                simplex.mixtures(best, SCREENED // 2, rng),
            ]
        )
        points, values = np.vstack([points, more]), np.concatenate([values, predict(more)])
    averages = W.max(axis=1) < 1.0  # at a single member the prior is exact
    surpassed = (y - predict(W))[averages & np.isfinite(predict(W))]
    return Promise(
        seen=float(y.max()),
        predicted=float(values.max()),
        error=float(surpassed.max(initial=0.0)),
    )
