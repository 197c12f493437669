"""Time of a search over w as Ray's workers grow, and what searching side by side costs.

    python -m benchmarks.ray_scaling --json
    python -m benchmarks.ray_scaling --workers 1 4 --candidates 24 --seconds 0.5 --seeds 2

An evaluation is a sleep of 2 s; its values are log loss and F1 of a mixture of 15 random
members' predictions. `efficiency_N` is T(1) / (N T(N)), `ideal_N` the same with
T(1) = candidates x seconds; T is from the first suggestion to the last outcome, journal on the
disk included, workers already running. `hypervolume_ratio` compares 16 candidates at once with
one after the other, over several seeds, in simulated time.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.simulated import Sleeping
from benchmarks.suggest import Mixtures
from fusetune.executors.executor import Executor, Job, Outcome, Report
from fusetune.executors.serial import SerialExecutor
from fusetune.members.weights import FusionWeights
from fusetune.objective import LOSS, Objective
from fusetune.optimization import pareto
from fusetune.optimization.samplers import FusionSampler, ask_weights, weights_of
from fusetune.optimization.storage import open_storage
from fusetune.optimization.study import Finished, Loop

F1 = Objective("f1", "maximize")
MEMBERS = 15
JITTER = 0.1  # of the simulated evaluations' time


class Simulated:
    """w → its values, after a sleep in a worker."""

    def __init__(self, landscape: Mixtures, seconds: float) -> None:
        self.landscape = landscape
        self.seconds = seconds

    def __call__(self, weights: FusionWeights, number: int, report: Report) -> Finished:
        gain, f1 = self.landscape(np.array([weights.values]))[0]
        return Finished({"loss": -gain, "f1": f1})

    def worker(self) -> Sleeping:
        return Sleeping(self.seconds)

    def pack(self, params: FusionWeights, number: int) -> tuple[float, ...]:
        return params.values

    def unpack(self, params: FusionWeights, number: int, value: None) -> Finished:
        return self(params, number, lambda step, value: False)


class SideBySide:
    """Has a clock of its own: `capacity` evaluations at once, of varying length."""

    ordered = False

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._now = 0.0
        self._running: list[tuple[float, int, Callable[[], Any]]] = []

    def submit(self, number: int, evaluate: Callable[[], Any]) -> None:
        end = self._now + 1.0 + JITTER * self._rng.uniform(-1.0, 1.0)
        heapq.heappush(self._running, (end, number, evaluate))

    def next_done(self) -> Outcome:
        self._now, number, evaluate = heapq.heappop(self._running)
        return Outcome(number, value=evaluate())

    def any_done(self) -> bool:
        return False  # no two end at the same moment

    def release(self) -> None:
        pass

    def close(self) -> None:
        self._running.clear()


def search(
    executor: Executor, landscape: Mixtures, candidates: int, seconds: float, seed: int
) -> tuple[float, float]:
    """Seconds that a search takes, and the hypervolume that it ends with."""
    objectives = (LOSS, F1)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(open_storage(Path(folder) / "trials.journal"), executor)
        started = time.perf_counter()
        study = loop.run(
            "scaling",
            FusionSampler(MEMBERS, objectives, seed=seed, budget=candidates),
            functools.partial(ask_weights, k=MEMBERS),
            Simulated(landscape, seconds),
            trials=candidates,
            objectives=objectives,
        )
        taken = time.perf_counter() - started
        trials = study.get_trials(deepcopy=False)
    assert [t.number for t in trials] == list(range(candidates))
    points = np.array([weights_of(t).values for t in trials])
    reference, _ = pareto.reference_point(landscape(np.eye(MEMBERS)))
    return taken, pareto.hypervolume(landscape(points), reference)


def scaling(
    workers: list[int], candidates: int, seconds: float, seed: int, cpus: float, ahead: int
) -> dict[str, float]:
    """Seconds, efficiency and hypervolume for every number of workers."""
    from fusetune.executors.ray import RayExecutor
    from fusetune.executors.ray import create as ray_executor

    landscape = Mixtures.random(MEMBERS, 500, seed)
    found: dict[str, float] = {}
    for n in workers:
        options = {"workers": n, "cpus_per_worker": cpus, "ahead": ahead if n > 1 else 0}
        executor = ray_executor(gpus_per_worker=0, **options)
        assert isinstance(executor, RayExecutor)
        try:
            executor.start()
            for number in range(n):  # the first job of a worker imports what it needs
                executor.submit(number, Job(Simulated(landscape, 0.2), _uniform(), number))
            for _ in range(n):
                executor.next_done()
            taken, volume = search(executor, landscape, candidates, seconds, seed)
        finally:
            executor.close()
        found |= {f"seconds_{n}": taken, f"hypervolume_{n}": volume}
        found[f"ideal_{n}"] = candidates * seconds / (n * taken)
        found[f"efficiency_{n}"] = found[f"seconds_{min(workers)}"] * min(workers) / (n * taken)
    return found


def quality(capacity: int, candidates: int, seeds: int) -> dict[str, float]:
    """Hypervolume of many candidates at once, over that of one after the other."""
    ratios = []
    for seed in range(seeds):
        landscape = Mixtures.random(MEMBERS, 500, seed)
        _, alone = search(SerialExecutor(), landscape, candidates, 0.0, seed)
        _, many = search(SideBySide(capacity, seed), landscape, candidates, 0.0, seed)
        ratios.append(many / alone)
    return {
        "hypervolume_ratio": float(np.mean(ratios)),
        "hypervolume_ratio_least": min(ratios),
        "hypervolume_ratio_most": max(ratios),
    }


def _uniform() -> FusionWeights:
    return FusionWeights.uniform(MEMBERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--candidates", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side-by-side", type=int, default=16)
    parser.add_argument("--cpus", type=float, default=0.1, help="logical, of each worker")
    parser.add_argument("--ahead", type=int, default=1, help="the executor's option")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    if options.workers:
        timed = (sorted(options.workers), options.candidates, options.seconds, 0)
        found |= scaling(*timed, options.cpus, options.ahead)
    if options.seeds:
        found |= quality(options.side_by_side, options.candidates, options.seeds)
    if options.json:
        print(json.dumps(found))  # the last line: Ray prints warnings before it
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
