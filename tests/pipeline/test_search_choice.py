from __future__ import annotations

import optuna
import pytest

from fusetune.errors import NoResultError
from fusetune.objective import Objective
from fusetune.pipeline.best_trial import choose

MCC = Objective("matthews_correlation", "maximize")
ERROR = Objective("word_error_rate", "minimize")


def study(objective: Objective, trials: list[tuple[float, float]]) -> optuna.Study:
    made = optuna.create_study(direction=objective.direction)
    for value, loss in trials:
        made.add_trial(optuna.trial.create_trial(value=value, user_attrs={"loss": loss}))
    return made


@pytest.mark.parametrize(
    ("objective", "trials", "expected"),
    [
        (MCC, [(0.1, 0.5), (0.3, 0.9), (0.2, 0.1)], 1),
        (ERROR, [(0.1, 0.5), (0.3, 0.9), (0.2, 0.1)], 0),
        # All three predict one class only: the loss tells how far each had come.
        (MCC, [(0.0, 0.70), (0.0, 0.62), (0.0, 0.64)], 1),
    ],
)
def test_the_best_trial_and_ties_by_the_loss(
    objective: Objective, trials: list[tuple[float, float]], expected: int
) -> None:
    chosen, best = choose(study(objective, trials).trials, objective, None)
    assert chosen is best
    assert best.number == expected


def test_a_search_without_a_complete_trial_says_what_to_do() -> None:
    with pytest.raises(NoResultError, match="None of the 0 trials"):
        choose([], MCC, None)
