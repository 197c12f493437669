"""`layers`: one w per group of layers, searched from the best global w.

.. [Yang2024] E. Yang et al. AdaMerging: Adaptive Model Merging for Multi-Task Learning.
   ICLR 2024.
.. [White2000] H. White. A Reality Check for Data Snooping. Econometrica 68, 2000.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.bootstrap import LEVEL, adjusted_p_values
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.smooth import Score
from fusetune.members import points
from fusetune.members.layers import PARTS, group_names
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool
from fusetune.methods.choices import Evaluated, consensus
from fusetune.methods.method import FusionResult
from fusetune.methods.mobo import mobo
from fusetune.methods.origin import Origin
from fusetune.methods.search import MOBO, result_of, study_name
from fusetune.methods.steps import Steps, averaged_groups, targets
from fusetune.optimization import selection
from fusetune.optimization.layers import SCORE, LayerSampler, Mean, ask_step
from fusetune.optimization.recording import SUGGEST_SECONDS
from fusetune.optimization.study import Finished, Loop, Pruned, Report

NAME = "layers"

GLOBAL = 2 / 3
"""Share of the budget that the search for one w takes."""

MOST_TARGETS = 4
"""So many mixtures each group of layers can go towards."""

LEAST_STEPS = 3
"""So many evaluations are left for steps of several groups together."""


def layers(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
    prior: bool = True,
    parts: int = PARTS,
) -> FusionResult:
    """One w per group of layers (embeddings, thirds of the stack, head) [Yang2024].

    Two thirds of the budget are the first trials of `mobo`, taken from its study where they are
    there. From the consensus of these, each group of layers goes towards the mixtures that they
    found good (`steps.targets`): each group alone, then what a sparse Gaussian process
    promises, with the sum of the single effects as mean function (`optimization.layers`).

    More freedom fits the split's luck better too. So the finer weights are taken only if
    they beat the global w on validation by more than noise: in the smoothed metric, by a
    paired bootstrap that counts all tries [White2000]. Else the result is the global w, and
    `details["notes"]` says so. The choice "finer" has the finer weights in any case.
    A score without outcomes per example has no noise that could be known: then the better
    value decides.

    Args:
        pool: The k members.
        evaluator: f on the validation split.
        budget: Distinct evaluations in all, those of the global search among them.
        seed: The only source of randomness.
        loop: Storage and executor.
        origin: As for every method.
        prior: As in `mobo`.
        parts: Into how many parts the stack of layers is cut.
    """
    first = min(budget, max(len(pool) + 1, round(GLOBAL * budget)))
    mobo(pool, evaluator, budget=first, seed=seed, loop=loop, origin=origin, prior=prior)
    seen, start = _first(loop, first, evaluator)
    groups = averaged_groups(pool, parts)
    left = budget - start.evaluations - 1  # the last is for the average of the best
    goals = targets(start.weights, seen, evaluator.objectives)
    affordable = max(0, (left - LEAST_STEPS) // max(1, len(groups)))
    if len(groups) < 2 or not affordable or not goals:
        return _global(start, _reason(groups, affordable, left, parts))
    goals = goals[: min(MOST_TARGETS, affordable)]
    steps = Steps(start.weights, tuple(goals), groups, parts)
    search = _Search(evaluator, steps, seed)
    bound = selection.best_member(seen.W, seen.Y, evaluator.objectives)
    return _chosen(search, search.run(loop, left), start, bound, seed)


def _first(loop: Loop, trials: int, evaluator: Evaluator) -> tuple[Evaluated, FusionResult]:
    """The first trials of `mobo`, and their consensus."""
    study = loop.find(study_name(MOBO))
    assert study is not None  # it has just been run
    first = [t for t in study.get_trials(deepcopy=False) if t.number < trials]
    seen = Evaluated.of(first, evaluator)
    return seen, consensus(result_of(first, evaluator, study.study_name), seen, evaluator)


@dataclasses.dataclass(frozen=True, slots=True)
class _Try:
    """One finer point: its step, what it became, what it cost; whether it is the average."""

    step: NDArray[np.float64]
    point: Point
    score: float
    seconds: float
    average: bool = False


class _Search:
    """The search over steps, and what each of them is worth."""

    def __init__(self, evaluator: Evaluator, steps: Steps, seed: int) -> None:
        self.evaluator = evaluator
        self.steps = steps
        self.score = Score(evaluator)
        self.base = evaluator(steps.start)
        self._seed = seed

    def run(self, loop: Loop, trials: int) -> list[_Try]:
        """Bring the study to that many trials; the complete ones, then their average."""
        single = [self.steps.point(t) for t in np.eye(self.steps.dimension)]
        self.evaluator.prefetch(single)
        sampler = LayerSampler(
            len(self.steps.groups),
            len(self.steps.goals),
            self._known(),
            seed=self._seed,
            make_mean=self._mean,
        )
        study = loop.run(
            study_name(NAME),
            sampler,
            lambda trial: ask_step(trial, self.steps.dimension),
            self._evaluate,
            trials=trials,
            objectives=self.evaluator.objectives,
        )
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = [self._told(trial) for trial in done]
        return [*found, *self._average(found)]

    def _evaluate(
        self, step: tuple[float, ...], number: int, report: Report
    ) -> Finished | Pruned:
        point = self.steps.point(np.array(step))
        found = self.evaluator(point)
        attributes = {SCORE: self.score(found), "seconds": found.seconds}
        return Finished(found.values, attributes | points.to_json(point))

    def _told(self, trial: FrozenTrial) -> _Try:
        step = np.array([trial.params[f"t{d}"] for d in range(self.steps.dimension)])
        spent = trial.user_attrs["seconds"] + trial.user_attrs.get(SUGGEST_SECONDS, 0.0)
        return _Try(step, self.steps.point(step), trial.user_attrs[SCORE], spent)

    def _average(self, found: Sequence[_Try]) -> list[_Try]:
        """The consensus of the finer points, the start among them; see `selection`."""
        rows = np.vstack([np.zeros(self.steps.dimension), *(t.step for t in found)])
        scores = np.array([self.score(self.base), *(t.score for t in found)])
        kept = np.argsort(-scores, kind="stable")
        kept = kept[: min(selection.AVERAGED, max(1, len(rows) // 3))]
        step = rows[kept].mean(axis=0)
        point = self.steps.point(step)
        if point == self.steps.start or any(t.point == point for t in found):
            return []
        evaluation = self.evaluator(point)
        return [_Try(step, point, self.score(evaluation), evaluation.seconds, average=True)]

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the global search says: no step, and all groups at one mixture."""
        number = len(self.steps.groups)
        whole = [np.tile(unit, number) for unit in np.eye(len(self.steps.goals))]
        rows = np.vstack([np.zeros(self.steps.dimension), *whole])
        evaluated = [self.base, *(self.evaluator(goal) for goal in self.steps.goals)]
        return rows, np.array([self.score(e) for e in evaluated])

    def _mean(self, single: tuple[int, ...]) -> Mean | None:
        """The sum of what each group's move does to the predictions."""
        unit = np.eye(self.steps.dimension)
        moved = [self.evaluator(self.steps.point(unit[d])) for d in single]
        if self.score.of_shifts(self.base, moved, np.zeros((1, len(single)))) is None:
            return None

        def mean(steps: NDArray[np.float64]) -> NDArray[np.float64]:
            found = self.score.of_shifts(self.base, moved, steps[:, list(single)])
            assert found is not None
            return found

        return mean


def _chosen(
    search: _Search, finer: Sequence[_Try], start: FusionResult, bound: float, seed: int
) -> FusionResult:
    """The finer weights where they are better by more than noise, else the global w."""
    evaluator, primary = search.evaluator, search.evaluator.primary
    fit = [
        i
        for i, t in enumerate(finer)
        if primary.sign * evaluator(t.point).values[primary.name] >= bound
    ]
    if not fit:
        return _global(start, "no finer weights were as good as the best member")
    first = evaluator.objectives[0]

    def rank(i: int) -> tuple[float, float]:  # of equal scores the lower loss counts
        return finer[i].score, first.sign * evaluator(finer[i].point).values[first.name]

    best = max(fit, key=rank)
    # The average of the best first: it owes less to luck than the best itself.
    order = list(dict.fromkeys([*(i for i in fit if finer[i].average), best]))
    started = time.perf_counter()
    p = _p_values(search, finer, seed)
    testing = time.perf_counter() - started
    gain = [t.score - search.score(search.base) for t in finer]
    accepted = [i for i in order if (p[i] < 1.0 - LEVEL if p is not None else gain[i] > 0.0)]
    i = (accepted or order)[0]
    evaluations = start.evaluations + len({t.point for t in finer})
    seconds = start.seconds + sum(t.seconds for t in finer) + testing
    details = {
        "accepted": bool(accepted),
        "gain": gain[i],
        "p_value": None if p is None else float(p[i]),
        "global": points.to_json(start.point),
        "groups": [group_names(search.steps.parts)[g] for g in search.steps.groups],
        "towards": [list(goal.values) for goal in search.steps.goals],
        "step": finer[i].step.tolist(),
    }
    values = evaluator(finer[i].point).values
    found = FusionResult(finer[i].point, values, evaluations, seconds, details)
    if accepted:
        return dataclasses.replace(found, choices={"finer": found})
    kept = dataclasses.replace(start, evaluations=evaluations, seconds=seconds)
    sure = "" if p is None else f", p = {p[i]:.2f} over all {len(finer)} tries"
    reason = f"the finer weights gain {gain[i]:+.4f} on validation{sure}: inside the noise"
    return dataclasses.replace(_global(kept, reason, details), choices={"finer": found})


def _p_values(search: _Search, finer: Sequence[_Try], seed: int) -> NDArray[np.float64] | None:
    """Of each try against the start; None where the score has no outcomes per example."""
    evaluations = [search.base, *(search.evaluator(t.point) for t in finer)]
    sampled = search.score.samples(evaluations, seed)
    if sampled is None:
        return None
    values = np.array([search.score(e) for e in evaluations])
    return adjusted_p_values(values[1:] - values[0], sampled[:, 1:] - sampled[:, :1])


def _reason(groups: Sequence[int], affordable: int, left: int, parts: int) -> str:
    """Why there is nothing to search."""
    if len(groups) < 2:
        names = [group_names(parts)[g] for g in groups]
        return f"the members differ in {', '.join(names) or 'no group of layers'} alone"
    if not affordable:
        return f"{max(0, left)} evaluations are too few for {len(groups)} groups of layers"
    return "the search for one w found no other mixture to go towards"


def _global(
    start: FusionResult, reason: str, details: Mapping[str, object] | None = None
) -> FusionResult:
    """The global w, with a note that says why."""
    notes = [f"layers kept one w for all layers: {reason}."]
    found = {"accepted": False, **(details or {}), "notes": notes}
    return dataclasses.replace(start, details=found, choices={})
