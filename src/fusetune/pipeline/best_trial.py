"""Which trial of the search gives the training its λ.

.. [Breiman1984] L. Breiman, J. Friedman, R. Olshen, C. Stone. Classification and Regression
   Trees. Wadsworth 1984, section 3.4.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import NoResultError
from fusetune.evaluation.bootstrap import bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.objective import LOSS, Objective
from fusetune.tasks.task import Task

RATE = "learning_rate"
ERROR = "error"
ERRORS = 2.0
"""How many standard errors of the best trial's value another one may lie below it."""

TINY = 1e-12  # in the place of a rate of 0

SAMPLES = 500
"""Of the bootstrap behind a trial's standard error."""


def cautious(
    trials: Iterable[FrozenTrial], objective: Objective, best: FrozenTrial, usual: float
) -> FrozenTrial:
    """Of the trials that cannot be told from the best one, that with the most usual rate.

    The learning rate that is best for a light or short trial need not be that for the training
    which it stands for, and what an extreme rate costs on other data than the validation split
    shows nowhere. So it has to pay: the rule of one standard error [Breiman1984]_, with
    `ERRORS` of them. Distances are those of logarithms; of two equal ones the lower rate is
    taken, and of equal rates the better trial. The best trial itself where it has no error, or
    no learning rate.

    Args:
        trials: Of the search.
        objective: What it improved.
        best: The best of them.
        usual: The recipe's own learning rate.
    """
    error = best.user_attrs.get(ERROR)
    if error is None or RATE not in best.params:
        return best
    assert best.value is not None
    least = objective.sign * best.value - ERRORS * float(error)
    near = [
        t
        for t in trials
        if t.state is TrialState.COMPLETE
        and t.value is not None
        and objective.sign * t.value >= least
    ]

    def distance(trial: FrozenTrial) -> tuple[float, float, float, float]:
        rate = float(trial.params[RATE])
        metric, loss = _rank(trial, objective)
        apart = abs(math.log(max(rate, TINY) / max(usual, TINY)))
        return apart, rate, -metric, -loss

    return min(near, key=distance)


def choose(
    trials: Sequence[FrozenTrial], primary: Objective, usual: float | None
) -> tuple[FrozenTrial, FrozenTrial]:
    """The trial whose λ is taken, and the one with the best value.

    Args:
        trials: Of the search.
        primary: What it improved.
        usual: As in `cautious`; None takes the best.

    Raises:
        NoResultError: If no trial was trained to its end.
    """
    best = next(iter(best_trials(trials, primary, 1)), None)
    if best is None:  # of those that ended, every one was stopped early or failed
        raise NoResultError(
            f"None of the {len(trials)} trials of the search was trained to its end.",
            "Let them: search.pruner: none, or lower search.space.learning_rate.high.",
        )
    return best if usual is None else cautious(trials, primary, best, usual), best


def sentence(chosen: FrozenTrial, best: FrozenTrial, primary: Objective) -> str:
    """What the search found."""
    found = ", ".join(
        f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in chosen.params.items()
    )
    text = f"search: {primary.name} {chosen.value:.4f} with {found}"
    if chosen is best:
        return text
    rate = float(best.params[RATE])
    return f"{text}; {best.value:.4f}, with the less usual rate {rate:.4g}, is within its noise"


def rank(values: Mapping[str, float], primary: Objective) -> tuple[float, float]:
    """By the primary metric, equal ones by the loss; larger is better."""
    return primary.sign * values[primary.name], -values[LOSS.name]


def best_error(checks: Sequence[Evaluation], task: Task, labels: NDArray[Any]) -> float | None:
    """Standard error of the primary metric of the best check of a trial.

    None without checks, or without outcomes per example.

    Args:
        checks: Validations of a trial as it trained.
        task: Knows the primary metric.
        labels: `n`, of the validation split.
    """
    primary = task.objectives[1]
    best = max(checks, key=lambda check: rank(check.values, primary), default=None)
    if best is None or best.outputs is None:
        return None
    counts = bootstrap_counts(len(labels), SAMPLES)
    return float(task.resample(best.outputs, labels, counts)[primary.name].std())


def best_trials(
    trials: Iterable[FrozenTrial], objective: Objective, count: int
) -> list[FrozenTrial]:
    """The complete trials with the best values, best first; each λ once.

    Equal values are told apart by the loss. Short trials often tie, as at the 0 of a
    correlation that is not defined yet; the first of them could be the one whose learning
    rate is far too high.
    """
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    found: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda t: _rank(t, objective), reverse=True):
        if all(trial.params != other.params for other in found):
            found.append(trial)
    return found[:count]


def _rank(trial: FrozenTrial, objective: Objective) -> tuple[float, float]:
    """As `rank`, of a complete trial, which keeps its loss as an attribute."""
    assert trial.value is not None
    loss = float(trial.user_attrs.get(LOSS.name, 0.0))
    return rank({objective.name: trial.value, LOSS.name: loss}, objective)
