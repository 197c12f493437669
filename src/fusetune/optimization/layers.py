"""The next weights by layer: how far each group of layers goes towards which mixture.

Notation: G groups of layers, J mixtures worth going to, D = G·J; a step t is `D`, group by
group, t_gj ≥ 0 and Σ_j t_gj ≤ 1, so that

    w_g = (1 − Σ_j t_gj) w + Σ_j t_gj u_j

is on the simplex, w being the one w that the search starts from. n points, b new ones.

The surrogate has a sparse prior over the D coordinates (`surrogate.fit_sparse`), and moves
change few groups at a time: as a rule few of them matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from botorch.exceptions.errors import BotorchError
from numpy.typing import NDArray
from optuna import Trial
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from fusetune.optimization import acquisition, improvement, surrogate
from fusetune.optimization.prior import LEAST_CORRELATION, spearman
from fusetune.optimization.recording import Proposal, RecordingSampler
from fusetune.optimization.simplex import Points, distance_to_nearest

Mean = Callable[[Points], NDArray[np.float64]]
"""`b x D` steps → `b`, what is expected of them, larger is better."""

MakeMean = Callable[[tuple[int, ...]], Mean | None]
"""The coordinates whose full steps were evaluated by themselves → the mean function."""

SCORE = "score"
"""User attribute of a trial: what is maximised."""

CENTRES = 6  # best points about which is searched
SCREENED = 768
ROUNDS = 8
MOVES = 96
REACH = 0.75  # of the steps' length, kept from round to round
NEGLIGIBLE = 0.01  # of a step: below it, nothing moves
APART = 0.02  # least L1 distance of a suggestion from every point

_NUMERICAL = (RuntimeError, BotorchError)  # torch's LinAlgError is a RuntimeError


def suggest(
    T: Points,
    y: NDArray[np.float64],
    groups: int,
    *,
    seed: int | tuple[int, ...],
    taken: Points,
    fixed: Sequence[int] = (),
    mean: Mean | None = None,
) -> Points:
    """The step whose expected improvement is highest, `D`; a pure function of its arguments.

    Args:
        T: `n x D`; n ≥ 2 steps evaluated.
        y: `n`; their values, finite, to be maximised.
        groups: G.
        seed: Of every random choice.
        taken: `m x D`; what must not be suggested again.
        fixed: Coordinates that stay 0.
        mean: The mean function; constant if None.

    Raises:
        botorch.exceptions.errors.ModelFittingError: If the surrogate cannot be fitted.
    """
    rng = np.random.default_rng(seed)
    promise = _promise(T, y, mean, int(rng.integers(2**31)))
    centres = T[np.argsort(-y, kind="stable")[:CENTRES]]

    def fresh(points: Points) -> Points:
        points = np.where(points < NEGLIGIBLE, 0.0, points)
        points[:, list(fixed)] = 0.0
        return points[distance_to_nearest(points, taken) > APART]

    pool = fresh(moves(centres, groups, SCREENED, 1.0, rng))
    if len(pool) == 0:
        return np.asarray(moves(centres, groups, 1, 1.0, rng)[0])
    values = promise(pool)
    for round_ in range(ROUNDS):
        best = np.argsort(-values, kind="stable")[:CENTRES]
        pool, values = pool[best], values[best]
        around = np.vstack([pool, centres])
        moved = fresh(moves(around, groups, MOVES, REACH**round_, rng))
        pool, values = np.vstack([pool, moved]), np.concatenate([values, promise(moved)])
    return np.asarray(pool[int(values.argmax())])


def moves(
    centres: Points, groups: int, n: int, reach: float, rng: np.random.Generator
) -> Points:
    """Draw n steps: some groups of a centre go towards another centre's, or anywhere.

    One group in half of the draws, two in a quarter, all in the rest.

    Args:
        centres: `c x D`, best first.
        groups: G.
        n: How many.
        reach: The longest way, as a share.
        rng: The source of randomness.
    """
    shares = _shares(centres, groups)  # c x G x (J + 1)
    J = shares.shape[2] - 1
    base = shares[(rng.random(n) ** 2 * len(shares)).astype(int)]
    others = shares[rng.integers(len(shares), size=n)]
    anywhere = rng.dirichlet(np.full(J + 1, 0.5), size=(n, groups))
    target = np.where(rng.random((n, 1, 1)) < 0.5, others, anywhere)
    number = rng.choice([1, min(2, groups), groups], p=[0.5, 0.25, 0.25], size=n)
    rank = rng.random((n, groups)).argsort(axis=1).argsort(axis=1)
    chosen = (rank < number[:, None])[:, :, None]
    way = reach * np.exp(rng.uniform(np.log(0.05), 0.0, size=(n, 1, 1)))
    moved = np.where(chosen, base + way * (target - base), base)
    return np.asarray(moved[:, :, 1:].reshape(n, groups * J))


def _shares(T: Points, groups: int) -> Points:
    """Barycentric coordinates of each group, what stays at w first: `n x G x (J + 1)`."""
    parts = T.reshape(len(T), groups, -1)
    return np.concatenate([1.0 - parts.sum(axis=2, keepdims=True), parts], axis=2)


def _promise(
    T: Points, y: NDArray[np.float64], mean: Mean | None, seed: int
) -> Callable[[Points], NDArray[np.float64]]:
    """The expected improvement as a function of `b x D` steps."""
    known = np.zeros(len(y)) if mean is None else mean(T)
    with acquisition.reproducible(seed):
        model = surrogate.fit_sparse(torch.as_tensor(T), torch.as_tensor(y - known)[:, None])
    best = torch.tensor(float(y.max()), dtype=torch.float64)

    def promise(points: Points) -> NDArray[np.float64]:
        if len(points) == 0:
            return np.empty(0)
        expected = np.zeros(len(points)) if mean is None else mean(points)
        with torch.no_grad():
            posterior = model.posterior(torch.as_tensor(points))
            value = posterior.mean[:, 0] + torch.as_tensor(expected)
            deviation = posterior.variance[:, 0].sqrt()
        found = improvement.expected_improvement(value, deviation, best)
        # Where no improvement is in sight, the highest value decides.
        tie_breaker = 1e-9 * (value - best)
        return np.asarray(torch.nan_to_num(found + tie_breaker, nan=-torch.inf).numpy())

    return promise


class LayerSampler(RecordingSampler):
    """Proposes steps, parameters t0 … t(D−1): every coordinate alone in full, then `suggest`.

    The single steps say what each group of layers is worth, and make the mean function. It is
    given up where it does not rank what else is known (`prior.LEAST_CORRELATION`).

    Args:
        groups: G.
        targets: J.
        known: `m x D` steps and their `m` values, from other searches; m ≥ 1.
        seed: Of the whole study.
        make_mean: Makes the mean function; None for a constant one.
    """

    def __init__(
        self,
        groups: int,
        targets: int,
        known: tuple[Points, NDArray[np.float64]],
        *,
        seed: int,
        make_mean: MakeMean | None = None,
    ) -> None:
        self.names = [f"t{d}" for d in range(groups * targets)]
        super().__init__({name: FloatDistribution(0.0, 1.0) for name in self.names}, seed)
        self.groups, self.targets = groups, targets
        self.known = known
        self._make_mean = make_mean
        self._means: dict[tuple[int, ...], Mean | None] = {}

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> Proposal:
        """The first single step that no trial has taken, or else the model's."""
        trials = [t for t in trials if self.space.keys() <= t.params.keys()]
        asked = self._steps(trials)
        for d in self._order():
            if not self._is_single(asked, d).any():
                return Proposal(self._params(np.eye(len(self.names))[d]), "group")
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        T, y = self._steps(done), np.array([t.user_attrs[SCORE] for t in done])
        single = tuple(d for d in self._order() if self._is_single(T, d).any())
        broken = [d for d in self._order() if d not in single]
        T = np.vstack([self.known[0], T])
        y = np.concatenate([self.known[1], y])
        taken = np.vstack([self.known[0], asked])
        seed, fallback = (self.seed, number), ""
        if len(T) >= 2:
            try:
                mean = self._mean(single, T, y)
                t = suggest(T, y, self.groups, seed=seed, taken=taken, fixed=broken, mean=mean)
                return Proposal(self._params(t), "model")
            except _NUMERICAL as error:
                fallback = f"{type(error).__name__}: {error}"
        t = moves(T, self.groups, 1, 1.0, np.random.default_rng(seed))[0]
        t[broken] = 0.0
        return Proposal(self._params(t), "random", fallback)

    def _mean(self, single: tuple[int, ...], T: Points, y: NDArray[np.float64]) -> Mean | None:
        """The mean function, if it ranks the steps from which it was not made."""
        if self._make_mean is None or not single:
            return None
        if single not in self._means:
            self._means[single] = self._make_mean(single)
        mean = self._means[single]
        if mean is None:
            return None
        tested = (T > 0.0).sum(axis=1) > 1
        trusted = tested.sum() < 3 or spearman(mean(T[tested]), y[tested]) >= LEAST_CORRELATION
        return mean if trusted else None

    def _order(self) -> list[int]:
        """Coordinates: the first mixture for every group, then the next."""
        return [g * self.targets + j for j in range(self.targets) for g in range(self.groups)]

    @staticmethod
    def _is_single(T: Points, d: int) -> NDArray[np.bool_]:
        return np.asarray((T[:, d] == 1.0) & (T.sum(axis=1) == 1.0))

    def _params(self, t: Points) -> dict[str, float]:
        return dict(zip(self.names, t.tolist(), strict=True))

    def _steps(self, trials: Sequence[FrozenTrial]) -> Points:
        rows = [[t.params[name] for name in self.names] for t in trials]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.names))


def ask_step(trial: Trial, dimension: int) -> tuple[float, ...]:
    """The step that a running trial is to evaluate."""
    return tuple(trial.suggest_float(f"t{d}", 0.0, 1.0) for d in range(dimension))
