"""Rules for the choice that were tried: evaluations of a search → one w each.

Notation: n candidates, k members, r rows, B bootstrap samples; W: `n x k`; everything is to be
maximised. `d` is the metric's paired difference to the uniform average.

.. [Efron1975] B. Efron, C. Morris. Data analysis using Stein's estimator and its
   generalizations. JASA 70, 1975.
.. [Breiman1996] L. Breiman. Bagging predictors. Machine Learning 24, 1996.
.. [Breiman1984] L. Breiman, J. Friedman, R. Olshen, C. Stone. Classification and Regression
   Trees. Wadsworth 1984, section 3.4.3 (the rule of one standard error).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.landscapes.recorded import Array, Part
from fusetune.objective import LOSS, Objective
from fusetune.optimization import pareto, selection
from fusetune.tasks import metrics
from fusetune.tasks.confusion import Confusion, probabilities

Logits = NDArray[np.float32]

SAMPLES = 200
LENGTHS = (0.2, 0.35, 0.6, 1.0, 1.7, 3.0)
TOWARDS = (1.0, 0.75, 0.5, 0.25, 0.0)
SCALES = (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass
class Seen:
    """What a rule may look at: the candidates' outcomes on validation."""

    W: Array
    part: Part
    seed: int

    def __post_init__(self) -> None:
        part, W = self.part, self.W
        self.rng = np.random.default_rng(self.seed)
        predictions = part.mixed(W)
        self.predictions = predictions
        losses = part.losses(predictions)
        self.loss, self.metric = -losses.mean(axis=1), self.value(predictions)
        smooth = part.metric.smooth(predictions, part.labels)
        self.smooth = self.metric if smooth is None else smooth
        brier = metrics.find("brier")
        self.brier = self.loss if part.regression else -brier.batched(predictions, part.labels)
        self.soft = _soft(part, predictions)
        rows = len(part.labels)
        counts = self.rng.multinomial(rows, np.full(rows, 1.0 / rows), size=SAMPLES)
        self.counts = counts.astype(np.float64)
        self.boot = self.resampled(predictions, self.counts)
        self.loss_boot = -self.counts @ losses.T / rows
        k = W.shape[1]
        self.members = [int(np.flatnonzero(W[:, i] == 1.0)[0]) for i in range(k)]
        self.uniform = int(np.abs(W - 1.0 / k).sum(axis=1).argmin())
        self.d = self.metric - self.metric[self.uniform]
        self.noise = np.cov((self.boot - self.boot[:, [self.uniform]]).T)
        reference, _ = pareto.reference_point(np.column_stack([self.loss, self.metric]))
        self.drawn = np.maximum(self.loss, reference[0])  # a diverged member silences nothing

    def value(self, predictions: Logits) -> Array:
        return self.part.metric.batched(predictions, self.part.labels)

    def resampled(self, predictions: Logits, counts: Array) -> Array:
        """The metric on samples, `B x n`."""
        form = self.part.metric.resampled
        return np.stack([form(p, self.part.labels, counts) for p in predictions], axis=1)

    def best(self, score: Array) -> Array:
        return np.asarray(self.W[int(np.lexsort((-self.loss, -score))[0])])

    def top(self, score: Array, m: int) -> Array:
        return np.asarray(self.W[np.argsort(-score, kind="stable")[:m]].mean(axis=0))


def _soft(part: Part, predictions: Logits) -> Array:
    if part.regression:
        return part.metric.batched(predictions, part.labels)
    expected = Confusion.of(probabilities(predictions), part.labels)
    forms = {"f1": expected.f1[..., 1], "matthews_correlation": expected.matthews}
    return forms.get(part.metric.name, expected.accuracy)[:, 0]


def z(score: Array) -> Array:
    """Standardised."""
    deviation = score.std()
    return np.asarray((score - score.mean()) / (deviation if deviation > 0.0 else 1.0))


def within(most: float, errors: float) -> str:
    """The name of the rule that goes so far while it is within so many standard errors."""
    return f"consensus, at most {most:g} towards the uniform average, {errors:g} errors"


OTHERS = (5, 20)
"""How many w a narrower and a wider consensus average, of a few dozen."""

DEFAULT = within(selection.TOWARDS_UNIFORM[0], selection.ERRORS)
"""What `fuse.choose: consensus` does."""


def all_rules(seen: Seen) -> dict[str, Array]:
    """Every rule's w by its name."""
    k = seen.W.shape[1]
    member = max(seen.members, key=lambda i: (seen.metric[i], seen.loss[i]))
    Y = np.column_stack([seen.loss, seen.metric])
    objectives = [LOSS, Objective(seen.part.metric.name, "maximize")]
    rules = {
        "finetune": seen.W[member],
        "swa": np.full(k, 1.0 / k),
        "best": seen.best(seen.metric),
        "posterior": seen.W[selection.posterior(seen.W, Y, objectives)],
        "knee": seen.W[selection.knee(Y, objectives)],
        "lowest loss": seen.best(seen.loss),
        "lowest brier": seen.best(seen.brier),
        "highest soft metric": seen.best(seen.soft),
        "highest smoothed metric": seen.best(seen.smooth),
    }
    return rules | _averages(seen) | _resampled(seen) | _processes(seen) | _shrunk(seen, rules)


def _averages(seen: Seen) -> dict[str, Array]:
    metric = z(seen.metric)
    scores = {
        "smoothed": z(seen.smooth),
        "smoothed + metric": z(seen.smooth) + metric,
        "soft": z(seen.soft),
        "soft + metric": z(seen.soft) + metric,
        "metric + brier": metric + z(seen.brier),
    }
    scores |= {f"metric + {c:g} loss": metric + c * z(seen.drawn) for c in (0.0, 0.5, 1.0, 2.0)}
    return {
        f"average of {m}: {name}": seen.top(score, m)
        for name, score in scores.items()
        for m in (3, 5, 10, 20, 30)
    }


def _resampled(seen: Seen) -> dict[str, Array]:
    """Winners of bootstrap samples averaged [Breiman1996]_; good on many halves; bounds."""
    found = {}
    for c in (0.0, 0.5, 1.0):
        score = seen.boot / seen.metric.std() + c * seen.loss_boot / seen.drawn.std()
        found[f"bagged, {c:g} loss"] = seen.W[score.argmax(axis=1)].mean(axis=0)
    rows = len(seen.part.labels)
    halves = np.zeros((SAMPLES, rows))
    for half in halves:
        half[seen.rng.permutation(rows)[: rows // 2]] = 1.0
    values = seen.resampled(seen.predictions, halves)
    ranks = np.mean([rankdata(v) for v in values], axis=0)
    found |= {
        "halves: mean rank": seen.best(ranks),
        "halves: average of 10": seen.top(ranks, 10),
    }
    found["halves: bagged"] = seen.W[values.argmax(axis=1)].mean(axis=0)
    for c in (0.5, 1.0):
        bound = seen.d - c * np.sqrt(np.diag(seen.noise))
        found[f"lower bound {c:g}"] = seen.best(bound)
        found[f"lower bound {c:g}: average of 10"] = seen.top(bound, 10)
    return found


def _shrunk(seen: Seen, rules: dict[str, Array]) -> dict[str, Array]:
    """(1 − s) w + s uniform; s by empirical Bayes, or James–Stein [Efron1975]_."""
    found, uniform = {}, rules["swa"]
    noise = float(np.diag(seen.noise).mean())
    spread = max(float((seen.d**2).mean()) - noise, 0.0)
    whole = noise / (noise + spread) if noise + spread > 0.0 else 0.0
    chosen = {
        "best": rules["best"],
        "average of 10: metric": seen.top(seen.metric, 10),
        "average of 5: smoothed": seen.top(seen.smooth, 5),
    }
    for name, w in chosen.items():
        predictions = seen.part.mixed(w[None])
        gain = float(seen.value(predictions)[0] - seen.metric[seen.uniform])
        own = seen.resampled(predictions, seen.counts)[:, 0] - seen.boot[:, seen.uniform]
        stein = min(1.0, float(own.var()) / gain**2) if gain > 0.0 else 1.0
        for label, s in (("empirical Bayes", whole), ("James–Stein", stein), ("a half", 0.5)):
            found[f"shrunk, {label}: {name}"] = (1.0 - s) * w + s * uniform
    return found


def _processes(seen: Seen) -> dict[str, Array]:
    """Gaussian processes of d with the bootstrap's noise, its covariance or variance alone."""
    found = {}
    for name, noise in (
        ("covariance", seen.noise),
        ("variance", np.diag(np.diag(seen.noise))),
    ):
        mean, samples = known_noise(seen.W, seen.d, noise, seen.rng)
        found[f"process, noise {name}"] = seen.best(mean)
        found[f"process, noise {name}: average of 10"] = seen.top(mean, 10)
        found[f"process, noise {name}: samples"] = seen.W[samples.argmax(axis=1)].mean(axis=0)
    return found


def known_noise(
    W: Array, d: Array, noise: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Posterior mean, `n`, and samples, `S x n`, of the gain over the uniform average.

    The process f(w) − f(uniform) has a Matérn 5/2 kernel; lengthscale and scale are those of
    the highest marginal likelihood on a grid.
    """
    n, k = W.shape
    uniform = np.full((1, k), 1.0 / k)

    def matern(A: Array, B: Array, length: float) -> Array:
        a = np.sqrt(5.0 * ((A[:, None] - B[None]) ** 2).sum(axis=2)) / length
        return np.asarray(np.exp(-a) * (1.0 + a + a * a / 3.0))

    best: tuple[float, Array, Array] | None = None
    jitter = 1e-8 * np.trace(noise) / n + 1e-12
    for length in LENGTHS:
        to = matern(W, uniform, length)
        base = matern(W, W, length) + 1.0 - to - to.T
        for scale in SCALES:
            K = scale * d.var() * base
            A = K + noise + jitter * np.eye(n)
            L = np.linalg.cholesky(A)
            white = np.linalg.solve(L, d)
            fit = -0.5 * white @ white - np.log(np.diag(L)).sum()
            fit -= 0.5 * (np.log(length) / 0.75) ** 2  # as in `process.LENGTHSCALE_PRIOR`
            if best is None or fit > best[0]:
                best = (float(fit), K, A)
    assert best is not None
    _, K, A = best
    mean = K @ np.linalg.solve(A, d)
    values, Q = np.linalg.eigh(K - K @ np.linalg.solve(A, K))
    drawn = rng.normal(size=(SAMPLES, n)) * np.sqrt(np.maximum(values, 0.0))
    return mean, mean + drawn @ Q.T


def guarded(seen: Seen) -> dict[str, Array]:
    """Ways for the consensus to keep up with the best member on validation, or nearly."""
    objectives = [LOSS, Objective(seen.part.metric.name, "maximize")]
    Y = np.column_stack([seen.loss, seen.metric])
    consensus = selection.consensus(seen.W, Y, objectives, seen.smooth)
    anchor = selection.anchor(seen.W, Y, objectives, seen.smooth)
    bound = selection.best_member(seen.W, Y, objectives)
    member = max(seen.members, key=lambda i: (seen.metric[i], seen.loss[i]))
    assert anchor is not None

    def below(w: Array) -> float:
        return bound - float(seen.value(seen.part.mixed(w[None]))[0])

    own = seen.resampled(seen.part.mixed(consensus[None]), seen.counts)[:, 0]
    noise = float((own - seen.boot[:, member]).std())
    choose: Callable[[bool, Array], Array] = lambda ok, w: consensus if ok else w  # noqa: E731

    def first(path: list[Array], average: Array = consensus) -> Array:
        back = [(1.0 - s) * average + s * seen.W[anchor] for s in selection.SHARES]
        return next((w for w in [*path, *back] if below(w) <= 0.0), back[-1])

    others = {}
    for m in OTHERS:
        average = seen.top(seen.smooth, m)
        paths = _towards_uniform(seen, average)
        others[f"consensus of {m}, towards the anchor"] = first([average], average)
        for name in (within(0.75, 0.5), DEFAULT):
            others[name.replace("consensus", f"consensus of {m}")] = first(paths[name], average)
    return (
        others
        | {
            "consensus, no guard": consensus,
            "consensus, else best": choose(below(consensus) <= 0.0, seen.best(seen.metric)),
            "consensus, towards the anchor": first([]),
            "consensus, unless worse than its noise": choose(
                below(consensus) <= 1.64 * noise, seen.W[anchor]
            ),
        }
        | {name: first(path) for name, path in _towards_uniform(seen, consensus).items()}
    )


def _towards_uniform(seen: Seen, consensus: Array) -> dict[str, list[Array]]:
    """Paths from the uniform average to the consensus, to be taken where they are good enough.

    By a fixed share, or as near to the average, or to a part of the way, as the metric is
    within so many standard errors of the consensus's, paired [Breiman1984]_.
    """
    path = [selection.shrunk(consensus, share) for share in TOWARDS]
    predictions = seen.part.mixed(np.array(path))
    values, samples = seen.value(predictions), seen.resampled(predictions, seen.counts)
    errors = (samples - samples[:, [-1]]).std(axis=0)
    found = {
        f"consensus, {share:g} towards the uniform average": path[i:]
        for i, share in enumerate(TOWARDS[:-1])
    }
    for most, c in itertools.product((1.0, 0.75), (0.5, 1.0, 2.0)):
        near = values >= values[-1] - c * errors
        kept = [path[i] for i in np.flatnonzero(near) if TOWARDS[i] <= most]
        found[within(most, c)] = kept
    return found
