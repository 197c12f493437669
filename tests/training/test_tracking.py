from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import TrainingArguments

from fusetune.errors import RecipeError
from fusetune.training.tracking import Tracker


def settings(folder: Path, *report_to: str) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), report_to=list(report_to), use_cpu=True)


def test_numbers_are_found_in_tensorboard(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tracker = Tracker(
        settings(tmp_path / "work", "tensorboard"), tmp_path / "logs", nn.Linear(1, 1)
    )
    for step, value in enumerate([0.5, 0.25]):
        tracker.log(step, {"fuse/mobo/loss": value, "weight/mobo/step-1": 1.0 - value})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/fuse/mobo/loss")] == [
        (0, 0.5),
        (1, 0.25),
    ]
    assert "eval/weight/mobo/step-1" in events.Tags()["scalars"]
    assert not (tmp_path / "work").exists()


def test_an_integration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="report_to: nothing_such is not supported"):
        Tracker(settings(tmp_path, "nothing_such"), tmp_path, nn.Linear(1, 1))
    with pytest.raises(RecipeError, match=r"report_to: .*clearml.* installed"):
        Tracker(settings(tmp_path, "clearml"), tmp_path, nn.Linear(1, 1))
