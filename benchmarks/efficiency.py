"""Evaluations and seconds to the hypervolume that the published scheme reaches at its end.

    python -m benchmarks.efficiency runs/cola runs/rte --json
    python -m benchmarks.efficiency landscapes/*.npz --json

The published scheme: points of a box divided by their sum, k Sobol starts, then BoTorch's
usual loop (`benchmarks.usual`), 6 k evaluations in all. Against it the search of `mobo`, which
ends when it has as much; one that does not get there counts with three times as many.

A run folder gives its members, evaluated anew on the validation split. A recorded
landscape (.npz: `validation_logits` k x rows x 2, `validation_labels`) takes the mixture of
logits for the fused model; there the ensemble prior would know the answer and is not used.
Without either, mixtures of random predictions of 15 members are the problem.

`evaluation_ratio`: ours to theirs. `time_ratio_same_evaluator`: their seconds to ours, both
with our evaluator. `time_ratio_published`: with each of their evaluations as slow as one
measured the published way (padded to 512 tokens, float32, batches of 32); run folders only.
All are geometric means over problems and seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from benchmarks import usual
from benchmarks.suggest import Mixtures
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.mobo import ensemble_prior
from fusetune.objective import LOSS, Objective, to_maximise
from fusetune.optimization import pareto
from fusetune.optimization.prior import MakePrior
from fusetune.optimization.samplers import FusionSampler
from fusetune.optimization.storage import quiet
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.workbench import Workbench, open_members
from fusetune.recipe_file import load
from fusetune.run import RunFolder

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Attributes:
    k: Number of members.
    objectives: Of f.
    evaluate: One w → its values, to be maximised, and the seconds that they took.
    prior: What `mobo` knows beforehand.
    published_seconds: Of one evaluation the published way; None if there is no model.
    """

    k: int
    objectives: tuple[Objective, ...]
    evaluate: Callable[[Array], tuple[Array, float]]
    prior: MakePrior | None
    published_seconds: float | None


def landscape(path: Path | None) -> Problem:
    """Mixtures of recorded logits, or of random ones: log loss and F1."""
    mixtures = Mixtures.random(15, 500, seed=0) if path is None else Mixtures.load(path)

    def evaluate(w: Array) -> tuple[Array, float]:
        started = time.perf_counter()
        return mixtures(w[None])[0], time.perf_counter() - started

    objectives = (LOSS, Objective("f1", "maximize"))
    return Problem(len(mixtures.margins), objectives, evaluate, None, None)


def problem_of(path: Path | None, last: int) -> Problem:
    """What a path on the command line stands for."""
    return landscape(path) if path is None or path.suffix == ".npz" else members(path, last)


def members(path: Path, last: int) -> Problem:
    """The last members of a run (0: all), on its validation split; its store is not used."""
    folder = RunFolder(path)
    context = Context(load(folder.recipe_file, of_run=True), folder, Display(quiet=True))
    pool = open_members(context).pool
    bench = Workbench(MemberPool(pool.members[-last:], context.base), context, None)
    evaluator = bench.evaluator("validation")

    def evaluate(w: Array) -> tuple[Array, float]:
        found = evaluator(FusionWeights(tuple(w.tolist())))
        return to_maximise([found.values], evaluator.objectives)[0], found.seconds

    k = len(bench.pool)
    evaluate(np.eye(k)[0])  # warm
    seconds = _published_evaluation(context, evaluator)
    prior = ensemble_prior(evaluator, k)
    return Problem(k, evaluator.objectives, evaluate, prior, seconds)


def _published_evaluation(context: Context, evaluator: Evaluator) -> float:
    """Seconds of one pass over the split: 512 tokens, float32, batches of 32."""
    rows = context.encode("validation")
    collate = context.collate
    tokens = 512
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(rows), 32):
            features = [rows[i] for i in range(first, min(first + 32, len(rows)))]
            inputs = dict(collate(features))
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                if name in inputs:
                    part = inputs[name]
                    wide = part.new_zeros(len(part), tokens)
                    wide[:, : part.shape[1]] = part
                    inputs[name] = wide
            evaluator.model(**inputs)
    return time.perf_counter() - started


def published(problem: Problem, seed: int, reference: Array) -> tuple[float, float, float]:
    """Final hypervolume, seconds of the optimiser, seconds of the evaluations."""
    k = problem.k
    box = usual.starts(k, k, seed)
    found = [problem.evaluate(w) for w in usual.weights(box)]
    suggesting = 0.0
    for n in range(k, 6 * k):
        started = time.perf_counter()
        values = np.array([y for y, _ in found])
        x = usual.suggest(box, values, reference, 1000 * seed + n)
        suggesting += time.perf_counter() - started
        box = np.vstack([box, x])
        found.append(problem.evaluate(usual.weights(x)))
    volume = pareto.hypervolume(np.array([y for y, _ in found]), reference)
    return volume, suggesting, sum(seconds for _, seconds in found)


def ours(
    problem: Problem, seed: int, reference: Array, level: float
) -> tuple[int, float, float]:
    """Evaluations to the level, seconds of the optimiser, seconds of the evaluations."""
    most = 18 * problem.k
    budget = 6 * problem.k  # as much as theirs; its end belongs to the greedy soup
    sampler = FusionSampler(
        problem.k, problem.objectives, seed=seed, prior=problem.prior, budget=budget
    )
    directions = [o.direction for o in problem.objectives]
    with quiet():
        study = optuna.create_study(directions=directions, sampler=sampler)
    values: list[Array] = []
    suggesting, evaluating = 0.0, 0.0
    signs = np.array([o.sign for o in problem.objectives])
    while len(values) < most:
        started = time.perf_counter()
        trial = study.ask(sampler.space)
        suggesting += time.perf_counter() - started
        y, seconds = problem.evaluate(np.array([trial.params[name] for name in sampler.space]))
        evaluating += seconds
        values.append(y)
        with quiet():
            study.tell(trial, (signs * y).tolist())
        if pareto.hypervolume(np.array(values), reference) >= level:
            break
    return len(values), suggesting, evaluating


def measure(paths: list[Path | None], seeds: int, last: int) -> dict[str, float]:
    """Geometric means over all problems and seeds."""
    rows: dict[str, list[float]] = {}
    for path in paths:
        problem = problem_of(path, last)
        corners = np.array([problem.evaluate(w)[0] for w in np.eye(problem.k)])
        reference, _ = pareto.reference_point(corners)
        for seed in range(seeds):
            level, suggest, evaluate = published(problem, seed, reference)
            n, our_suggest, our_evaluate = ours(problem, seed, reference, level)
            total = our_suggest + our_evaluate
            found = {
                "evaluation_ratio": n / (6 * problem.k),
                "time_ratio_same_evaluator": (suggest + evaluate) / total,
            }
            if problem.published_seconds is not None:
                slow = suggest + 6 * problem.k * problem.published_seconds
                found["time_ratio_published"] = slow / total
            print(path or "random", seed, json.dumps(found), file=sys.stderr, flush=True)
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    return {name: float(np.exp(np.mean(np.log(v)))) for name, v in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="*", help="run folders or .npz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=0, help="the last so many of a run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.paths or [None], arguments.seeds, arguments.members)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:.4f}")


if __name__ == "__main__":
    main()
