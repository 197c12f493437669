"""Whole runs still give what they gave.

Where a change is meant, `python -m tests.golden RUN` pins the new outcome, and the commit says
why it changed. What is left out of the pins is in `runs.UNPINNED`, with the reason.
"""

from __future__ import annotations

import json

import pytest

from tests.golden import pins
from tests.golden.pins import differences
from tests.golden.runs import RUNS


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gave(name: str) -> None:
    assert not differences(name)


def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = json.loads((pins.FOLDER / "library.json").read_text())
    pinned["chosen"]["values"]["loss"] += 0.1
    pinned["fused"]["weight"][1] += 0.001
    pinned["studies"]["fuse"].pop()
    monkeypatch.setattr(pins, "make", lambda _: pinned)
    found = differences("library")
    assert found[0].startswith("chosen/values/loss: pinned ")
    assert found[1].startswith("fused/weight/1: pinned ")
    assert all("now nothing" in line for line in found[2:])
    assert len(found) > 2
