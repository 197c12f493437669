"""Seconds per suggestion of the next w, against BoTorch's usual loop and Optuna's GPSampler.

    python -m benchmarks.suggest --json

k = 15, two objectives (log loss and F1 of mixtures of random members' predictions), n = 20, 50
and 100 evaluations. All ways run in turn in one process; medians. `seconds` and `speedup`
(over the usual loop) are those of the largest n, from the values alone; `seconds_prior` with
the ensemble for a mean function, `seconds_outputs` with a model of the outputs, made anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial

from benchmarks import usual
from fusetune.evaluation.ensemble import Ensemble
from fusetune.evaluation.interpolation import Interpolation
from fusetune.objective import LOSS, Objective
from fusetune.optimization import fusion, pareto, simplex
from fusetune.optimization.prior import Prior
from fusetune.tasks.classification import SequenceClassification

Array = NDArray[np.float64]
OURS = ("seconds", "seconds_prior", "seconds_outputs")


class Mixtures:
    """Log loss and F1, to be maximised, of mixtures of k members' predictions.

    Args:
        margins: `k x n`; each member's logit of the positive class less the other.
        labels: `n`; 0 or 1.
    """

    def __init__(self, margins: Array, labels: NDArray[np.int64]) -> None:
        self.margins = margins
        self.labels = labels

    @classmethod
    def random(cls, k: int, rows: int, seed: int) -> Mixtures:
        """Members that are right more often than not, and err partly together."""
        rng = np.random.default_rng(seed)
        labels = rng.integers(2, size=rows)
        signal = np.where(labels == 1, 1.0, -1.0)
        return cls(signal + rng.normal(size=rows) + rng.normal(size=(k, rows)), labels)

    @classmethod
    def load(cls, path: Path) -> Mixtures:
        """Members of a recorded landscape."""
        with np.load(path) as saved:
            logits = saved["validation_logits"].astype(np.float64)
            return cls(logits[..., 1] - logits[..., 0], saved["validation_labels"])

    def __call__(self, weights: Array) -> Array:
        """`b x k` → `b x 2`."""
        margins = weights @ self.margins
        positive = self.labels == 1
        loss = np.logaddexp(0.0, np.where(positive, -margins, margins)).mean(axis=1)
        said = margins > 0.0
        hits = (said & positive).sum(axis=1)
        f1 = 2.0 * hits / (said.sum(axis=1) + positive.sum())
        return np.column_stack([-loss, f1])


def by_outputs(f: Mixtures, points: Array, values: Array) -> Callable[[int], object]:
    """Suggestions as in a run on a task: the mixtures' logits are what was evaluated."""
    logits = np.stack([np.zeros_like(f.margins), f.margins], axis=2).astype(np.float32)
    task = SequenceClassification("mixtures", "unused", text=["t"], label="l", metrics=["f1"])
    ensemble = Ensemble(logits, f.labels, task)
    bent = np.random.default_rng(2).normal(0.0, 0.3, (*logits.shape,)).astype(np.float32)

    def learn(w: Array) -> Interpolation:
        outcomes = np.tensordot(w, logits, 1) + np.tensordot(w * (1.0 - w), bent, 1)
        return Interpolation(ensemble, w, outcomes.astype(np.float32))

    prior = Prior(ensemble.predict, np.empty((0, points.shape[1])), learn)
    objectives = (LOSS, Objective("f1", "maximize"))

    def suggest(seed: int) -> object:
        outputs = prior.outputs(points, values, objectives)
        return fusion.suggest(points, values, seed=seed, outputs=outputs)

    return suggest


def gp_sampler(box: Array, values: Array, seed: int) -> None:
    """One suggestion of Optuna's GPSampler on the box."""
    names = [f"x{i}" for i in range(box.shape[1])]
    space: dict[str, BaseDistribution] = {n: FloatDistribution(0.0, 1.0) for n in names}
    sampler = optuna.samplers.GPSampler(seed=seed)
    study = optuna.create_study(directions=["maximize"] * values.shape[1], sampler=sampler)
    for x, y in zip(box.tolist(), values.tolist(), strict=True):
        params = dict(zip(names, x, strict=True))
        study.add_trial(create_trial(params=params, distributions=space, values=y))
    study.ask(space)


def measure(k: int, sizes: list[int], repeats: int) -> dict[str, float]:
    """Median seconds of every way at every n, and the ratios."""
    f = Mixtures.random(k, 500, seed=0)
    rng = np.random.default_rng(1)
    found: dict[str, float] = {}
    for n in sizes:
        start = np.vstack([np.eye(k), np.full(k, 1.0 / k)])
        points = np.vstack([start, simplex.dirichlet(max(0, n - k - 1), k, 0.5, rng)])[:n]
        box = usual.starts(n, k, seed=0)
        values, box_values = f(points), f(usual.weights(box))
        reference, _ = pareto.reference_point(f(np.eye(k)))
        ways: dict[str, Callable[[int], object]] = {
            "seconds": lambda s, p=points, v=values: fusion.suggest(p, v, seed=s),  # type: ignore[misc]
            "seconds_prior": lambda s, p=points, v=values: fusion.suggest(  # type: ignore[misc]
                p, v, seed=s, mean=f
            ),
            "seconds_outputs": by_outputs(f, points, values),
            "usual": lambda s, x=box, v=box_values, r=reference: usual.suggest(  # type: ignore[misc]
                x, v, r, s
            ),
            "gp_sampler": lambda s, x=box, v=box_values: gp_sampler(x, v, s),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                way(repeat)
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(s) for name, s in seconds.items()}
        found |= {f"{name}_{n}": value for name, value in medians.items()}
        found |= {name: medians[name] for name in OURS}
        found["speedup"] = medians["usual"] / medians["seconds"]
        found["speedup_gp_sampler"] = medians["gp_sampler"] / medians["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=15)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = measure(arguments.members, sorted(arguments.evaluations), arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
