from __future__ import annotations

import numpy as np
import pytest

from fusetune.evaluation.undefined import constant_predictions, notes
from fusetune.objective import LOSS, Objective
from fusetune.tasks.task import Outputs

MATTHEWS = Objective("matthews_correlation", "maximize")
ACCURACY = Objective("accuracy", "maximize")
LABELS = np.array([0, 1, 1])


def said(*predictions: list[float]) -> Outputs:
    array = np.array(predictions, dtype=np.float32)
    return Outputs(np.zeros(len(array), dtype=np.float32), array)


@pytest.mark.parametrize(
    ("outputs", "constant"),
    [
        (said([1, 0], [3, 0], [2, 1]), True),  # one class, whatever the logits
        (said([1, 0], [0, 1], [2, 1]), False),
        (said([0.5], [0.5], [0.5]), True),  # regression
        (said([0.5], [0.5], [0.6]), False),
    ],
)
def test_constant_predictions(outputs: Outputs, constant: bool) -> None:
    assert constant_predictions(outputs) is constant


def test_notes_say_which_metric_and_whose_model() -> None:
    models = [("swa", said([1, 0], [3, 0], [2, 1])), ("mobo", said([1, 0], [0, 1], [2, 1]))]
    (note,) = notes("test", LABELS, models, (LOSS, MATTHEWS))
    assert note == (
        "On test one answer to every example from swa; matthews_correlation not defined "
        "there, counted as 0."
    )
    (note,) = notes("test", LABELS, models, (LOSS, ACCURACY))
    assert note == "On test one answer to every example from swa."
    assert notes("test", LABELS, models[1:], (LOSS, MATTHEWS)) == []


def test_one_class_makes_every_model_undefined_and_is_said_once() -> None:
    models = [("swa", said([1, 0], [3, 0]))]
    assert notes("validation", np.array([1, 1]), models, (LOSS, MATTHEWS)) == [
        "All 2 labels of validation are the same; matthews_correlation not defined there, "
        "counted as 0."
    ]
