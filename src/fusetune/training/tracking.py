"""Where a Trainer reports to (`report_to`), for trainings and for searches without one.

TensorBoard, Weights & Biases, MLflow, trackio and others have callbacks in Transformers; here
they are only found, told where to write, and called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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


@contextmanager
def own_runs(
    settings: TrainingArguments, callbacks: Iterable[TrainerCallback]
) -> Iterator[None]:
    """End what an integration leaves open, so that the next training is a run of its own.

    What was begun inside is ended, as failed if an exception passes. A run of MLflow that was
    open before, of the program around, stays open.

    Args:
        settings: Say which integrations there are.
        callbacks: Those of the training, the integrations' own among them.
    """
    before = _mlflow_run(settings)
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb = sys.modules.get("wandb") if "wandb" in (settings.report_to or ()) else None
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish(exit_code=int(failed))
        if _mlflow_run(settings) not in (None, before):
            sys.modules["mlflow"].end_run("FAILED" if failed else "FINISHED")
        for callback in callbacks:
            if hasattr(callback, "_auto_end_run"):
                # MLflow's ends a run when it is collected as garbage: by then the next one.
                callback._auto_end_run = False


def _mlflow_run(settings: TrainingArguments) -> str | None:
    """Id of the run that MLflow logs into, if it is asked for and one is open."""
    mlflow = sys.modules.get("mlflow") if "mlflow" in (settings.report_to or ()) else None
    active = mlflow.active_run() if mlflow is not None else None
    return active.info.run_id if active is not None else None


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
        with ExitStack() as runs:
            runs.enter_context(own_runs(settings, self._callbacks))
            self._call("on_train_begin")
            self._runs = runs.pop_all()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers of validation, "fuse/loss" as "eval/fuse/loss"."""
        self._state.global_step = step
        self._call("on_log", logs={f"eval_{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Nothing more will come."""
        with self._runs:
            self._call("on_train_end")

    def _call(self, event: str, **given: Any) -> None:
        for callback in self._callbacks:
            handle = getattr(callback, event)
            handle(self._settings, self._state, self._control, model=self._model, **given)
