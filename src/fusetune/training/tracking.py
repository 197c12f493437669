"""Where a Trainer reports to (`report_to`), for trainings and for searches without one.

TensorBoard, Weights & Biases, MLflow, trackio and others have callbacks in Transformers; here
they are only found, told where to write, and called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from fusetune.errors import RecipeError


def reporting_callbacks(settings: TrainingArguments) -> list[TrainerCallback]:
    """One new callback per integration that `report_to` names.

    Raises:
        RecipeError: If one is unknown or its package is not installed.
    """
    try:
        return [make() for make in get_reporting_integration_callbacks(settings.report_to)]
    except (ValueError, RuntimeError, ImportError) as error:
        line = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"train.arguments.report_to: {line}",
            "Install its package, or leave it out of report_to.",
        ) from error


def write_into(callbacks: Iterable[TrainerCallback], folder: Path) -> None:
    """Let TensorBoard write into a folder that stays, unless the environment says another.

    By itself it writes beside the Trainer's checkpoints, which are removed.
    """
    for callback in callbacks:
        if hasattr(callback, "tb_writer") and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            callback.logging_dir = str(folder)  # type: ignore[attr-defined]


def end_runs(settings: TrainingArguments) -> None:
    """End what an integration leaves open, so that the next training is a run of its own."""
    wandb = sys.modules.get("wandb") if "wandb" in (settings.report_to or ()) else None
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()


class Tracker:
    """Reports numbers step by step to the integrations of `report_to`, as a Trainer does.

    Args:
        settings: Says which, and the run's name.
        folder: For what is written as files.
        model: What Trainers show to their callbacks, whose configuration some report.

    Raises:
        RecipeError: As `reporting_callbacks`.
    """

    def __init__(self, settings: TrainingArguments, folder: Path, model: nn.Module) -> None:
        self._settings, self._model = settings, model
        self._callbacks = reporting_callbacks(settings)
        self._state, self._control = TrainerState(), TrainerControl()
        write_into(self._callbacks, folder)
        self._call("on_train_begin")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers of validation, "fuse/loss" as "eval/fuse/loss"."""
        self._state.global_step = step
        self._call("on_log", logs={f"eval_{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Nothing more will come."""
        self._call("on_train_end")
        end_runs(self._settings)

    def _call(self, event: str, **given: Any) -> None:
        for callback in self._callbacks:
            handle = getattr(callback, event)
            handle(self._settings, self._state, self._control, model=self._model, **given)
