"""Which trial of the search gives the training its λ."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.evaluation import Evaluation
from fusetune.objective import LOSS, Objective
from fusetune.pipeline.best_trial import best_error, choose
from fusetune.recipe_file import find, load
from fusetune.tasks import metrics
from fusetune.tasks.task import Outputs

ACCURACY = Objective("accuracy", "maximize")
ERRORS = Objective("errors", "minimize")


def trial(
    value: float, rate: float | None, error: float | None = 0.01, **options: Any
) -> FrozenTrial:
    params = {"weight_decay": 0.1} if rate is None else {"learning_rate": rate}
    return optuna.trial.create_trial(
        value=value,
        params=params,
        distributions={name: FloatDistribution(0.0, 1.0) for name in params},
        user_attrs={} if error is None else {"error": error},
        **options,
    )


USUAL = 3e-5


def chosen(*trials: FrozenTrial, objective: Objective = ACCURACY) -> FrozenTrial:
    found, best = choose(trials, objective, USUAL)
    assert choose(trials, objective, None) == (best, best)
    return found


def test_an_unusual_learning_rate_has_to_pay() -> None:
    low, middle, high = trial(0.789, 3e-5), trial(0.791, 5e-5), trial(0.81, 2e-4)
    assert chosen(low, middle, high) is middle  # low is more than two errors below the best
    assert chosen(low, high) is high
    assert chosen(trial(0.80, 3e-4), high) is high  # the better one is nearer already
    assert chosen(trial(0.80, 1e-6), high) is high
    tiny = trial(0.81, 1e-7)
    assert chosen(trial(0.80, 1e-5), tiny).params["learning_rate"] == 1e-5


def test_of_two_rates_equally_near_the_lower_one_is_taken() -> None:
    low, high = trial(0.80, USUAL / 4), trial(0.81, USUAL * 4)
    assert chosen(low, high) is low
    assert chosen(trial(0.80, 0.0), high) is high


def test_the_best_of_a_metric_to_be_minimised() -> None:
    low, high = trial(0.21, 1e-5), trial(0.20, 1e-4)
    assert chosen(low, high, objective=ERRORS) is low
    assert chosen(trial(0.23, 1e-5), high, objective=ERRORS) is high


def test_the_error_is_that_of_the_best_trial() -> None:
    sure, unsure = trial(0.81, 1e-4, error=0.001), trial(0.81, 1e-4, error=0.05)
    low = trial(0.75, 1e-5, error=0.001)
    assert chosen(low, sure) is sure
    assert chosen(low, unsure) is low


def test_without_an_error_or_a_learning_rate_the_best_is_taken() -> None:
    best = trial(0.81, 1e-4, error=None)
    assert chosen(trial(0.80, 1e-5), best) is best
    decayed = trial(0.81, None)
    assert chosen(trial(0.80, None), decayed) is decayed


def test_trials_that_did_not_end_are_not_taken() -> None:
    stopped = trial(0.80, 1e-5, state=TrialState.PRUNED)
    best = trial(0.81, 1e-4)
    assert chosen(stopped, best) is best


class Rows:
    """A task, as far as an error needs one."""

    objectives = (LOSS, ACCURACY)

    @staticmethod
    def resample(outputs: Outputs, labels: Any, counts: Any) -> dict[str, Any]:
        form = metrics.find("accuracy").resampled
        return {"accuracy": form(outputs.predictions, labels, counts)}


def test_the_error_of_an_accuracy_is_that_of_a_share() -> None:
    labels = np.ones(400, dtype=np.int64)
    predictions = np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (400, 1))
    predictions[:100] = [1.0, 0.0]
    outputs = Outputs(np.zeros(400, dtype=np.float32), predictions)
    checks = [
        Evaluation({"loss": 0.1, "accuracy": 0.5}, None, 0.0),
        Evaluation({"loss": 0.2, "accuracy": 0.75}, outputs, 0.0),
    ]
    found = best_error(checks, Rows(), labels)  # type: ignore[arg-type]
    assert found == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert best_error(checks[:1], Rows(), labels) is None  # type: ignore[arg-type]
    assert best_error([], Rows(), labels) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], 5e-5),  # light
        (["search.variant=full"], 5e-5),  # short
        (["search.variant=full", "search.epochs=null"], None),  # each is a full training
        (["search.objective=fused"], None),
        (["search.choose=best"], None),
        (["train.arguments.learning_rate=1e-3"], None),  # outside of the space
        (["search.space.learning_rate={choices: [1.0e-5, 1.0e-4]}"], 5e-5),
        (["search.space.learning_rate={choices: [1.0e-4, 2.0e-4]}"], None),
        (["search.space={weight_decay: {low: 0.0, high: 0.1}}"], None),
    ],
)
def test_only_trials_that_promise_are_looked_at_twice(
    changes: list[str], expected: float | None
) -> None:
    assert load(find("cola-minilm"), changes).usual_rate == expected


def test_a_recipe_that_names_no_rate_takes_the_best() -> None:
    recipe = load(find("cola-minilm"), [])
    arguments = {k: v for k, v in recipe.train.arguments.items() if k != "learning_rate"}
    train = recipe.train.model_copy(update={"arguments": arguments})
    assert recipe.model_copy(update={"train": train}).usual_rate is None
