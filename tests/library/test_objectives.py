from __future__ import annotations

from typing import Any

import pytest

from fusetune.errors import EvaluateError
from fusetune.library.objectives import as_objectives
from fusetune.objective import LOSS, Objective

F1, SECONDS = Objective("f1", "maximize"), Objective("seconds", "minimize")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"objectives": ["loss", "f1:maximize"]}, (LOSS, F1)),
        ({"objectives": ["f1:maximize", "loss"]}, (LOSS, F1)),
        ({"objectives": ["f1:maximize", "seconds:minimize"]}, (SECONDS, F1)),
        ({"objectives": ["loss", "seconds:minimize", F1]}, (LOSS, SECONDS, F1)),
        ({"objectives": ["loss", SECONDS, F1], "primary": "f1"}, (LOSS, F1, SECONDS)),
        ({"objectives": ["f1"], "direction": "maximize"}, (F1,)),
        (
            {"objectives": ["seconds", "f1"], "direction": ["minimize", "maximize"]},
            (F1, SECONDS),
        ),
    ],
)
def test_the_primary_objective_is_second(
    given: dict[str, Any], expected: tuple[Objective, ...]
) -> None:
    assert as_objectives(**given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objectives": []}, "at least one objective"),
        ({"objectives": ["f1"]}, "'f1' needs a direction, minimize or maximize; it has none"),
        ({"objectives": ["f1:up"]}, "got 'up'"),
        ({"objectives": ["loss", "loss"]}, "loss is twice"),
        ({"objectives": ["loss", F1], "primary": "f2"}, "'f2' is not among"),
        ({"objectives": ["a", "b"], "direction": ["minimize"]}, "one entry for each of the 2"),
    ],
)
def test_what_cannot_be_understood(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluateError, match=message):
        as_objectives(**given)
