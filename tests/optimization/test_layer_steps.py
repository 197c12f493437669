"""Steps of groups of layers: every coordinate alone, then what the surrogate promises."""

from __future__ import annotations

import numpy as np
import torch

from fusetune.objective import LOSS, Objective
from fusetune.optimization.layers import SCORE, LayerSampler, ask_step, moves, suggest
from fusetune.optimization.recording import ORIGIN
from fusetune.optimization.simplex import Points
from fusetune.optimization.study import Finished, Loop, Report
from fusetune.optimization.surrogate import fit_sparse

GROUPS, TARGETS = 3, 2
D = GROUPS * TARGETS
BEST = np.array([0.0, 0.8, 0.0, 0.0, 0.5, 0.0])  # groups 0 and 2, in one coordinate each


def value(t: Points) -> float:
    return -float(((t - BEST) ** 2).sum())


def feasible(T: Points) -> bool:
    parts = T.reshape(len(T), GROUPS, TARGETS)
    return bool((T >= 0.0).all() and (parts.sum(axis=2) <= 1.0 + 1e-12).all())


def test_moves_stay_between_the_mixtures_and_change_few_groups() -> None:
    rng = np.random.default_rng(0)
    centres = np.vstack([np.zeros(D), np.eye(D)])
    found = moves(centres[:1], GROUPS, 400, 1.0, rng)
    assert feasible(found)
    changed = (found.reshape(-1, GROUPS, TARGETS) > 0.0).any(axis=2).sum(axis=1)
    assert (changed <= 1).mean() > 0.4
    assert (changed == GROUPS).any()
    assert feasible(moves(centres, GROUPS, 400, 0.5, rng))


def study(trials: int, seed: int = 0, *, told: bool = False) -> list[tuple[str, Points]]:
    """Origin and step of each trial; with `told`, the mean function is the truth."""

    def evaluate(step: tuple[float, ...], number: int, report: Report) -> Finished:
        score = value(np.array(step))
        return Finished({"loss": -score, "metric": score}, {SCORE: score})

    known = np.vstack([np.zeros(D), np.tile([1.0, 0.0], GROUPS)])
    values = np.array([value(t) for t in known])
    make = None
    if told:

        def make(single: tuple[int, ...]) -> object:
            return lambda T: np.array([value(t) for t in T])

    sampler = LayerSampler(GROUPS, TARGETS, (known, values), seed=seed, make_mean=make)
    made = Loop.in_memory().run(
        "steps",
        sampler,
        lambda trial: ask_step(trial, D),
        evaluate,
        trials=trials,
        objectives=(LOSS, Objective("metric", "maximize")),
    )
    return [
        (t.user_attrs[ORIGIN], np.array([t.params[f"t{d}"] for d in range(D)]))
        for t in made.trials
    ]


def test_every_coordinate_alone_then_the_model() -> None:
    found = study(D + 2)
    assert [origin for origin, _ in found] == ["group"] * D + ["model"] * 2
    steps = np.array([step for _, step in found])
    assert steps[:D].tolist() == np.eye(D)[[0, 2, 4, 1, 3, 5]].tolist()
    assert feasible(steps)
    values = [value(step) for step in steps]
    assert max(values[D:]) > max(values[:D])
    assert study(D + 1)[D][1].tolist() == steps[D].tolist()


def test_a_mean_function_that_is_right_is_believed() -> None:
    best = max(value(step) for _, step in study(D + 2, told=True))
    assert best > -0.01


def test_what_is_fixed_stays_where_it_is() -> None:
    T = np.vstack([np.zeros(D), np.eye(D)])
    y = np.array([value(t) for t in T])
    t = suggest(T, y, GROUPS, seed=1, taken=T, fixed=[1, 4])
    assert t[[1, 4]].tolist() == [0.0, 0.0]
    assert feasible(t[None])


def test_the_sparse_prior_cuts_off_what_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(20, 8, generator=generator, dtype=torch.float64)
    y = -((X[:, 2] - 0.3) ** 2)[:, None]
    lengthscales = fit_sparse(X, y).covar_module.base_kernel.lengthscale[0]
    assert lengthscales.argmin() == 2
    assert (lengthscales > 10 * lengthscales[2]).sum() >= 5
