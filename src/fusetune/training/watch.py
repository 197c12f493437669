"""Callbacks that watch a training: its validation values, its progress, its health."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fusetune.evaluation.evaluation import Evaluation
from fusetune.training.collect import MemberCollector, first_from, plan_steps
from fusetune.training.sharded import wait_for_all

MARKER = "complete.json"


class DivergedError(RuntimeError):
    """The training loss, or the validation loss, is no longer a finite number."""


class DivergenceGuard(TrainerCallback):
    """Ends a training whose loss or weights are NaN or infinite.

    A training may be too short to log a loss on its way, or be told to leave NaN out of what it
    logs. So the mean of all losses and the weights are looked at in the end: no step makes a
    finite number of a NaN again.

    Raises:
        DivergedError: From `on_log` and `on_train_end`.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at the logged loss, and at the end at the mean of all."""
        logs = kwargs.get("logs") or {}
        for loss in (logs.get("loss"), logs.get("train_loss")):
            if loss is not None and not math.isfinite(float(loss)):
                raise DivergedError(
                    f"the training loss became {loss} at step {state.global_step}"
                )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at the weights."""
        for name, weights in kwargs["model"].named_parameters():
            if weights.requires_grad and not weights.isfinite().all():
                raise DivergedError(
                    f"the weights {name} are no finite numbers after step {state.global_step}"
                )


class ProgressReporter(TrainerCallback):
    """Calls `report(step, total)` after each optimiser step."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the step."""
        self.report(state.global_step, state.max_steps)


class ValidationWatch(TrainerCallback):
    """Evaluates the model as it trains, at evenly spaced steps, and may stop it.

    Args:
        score: Model → values over the whole validation split.
        checks: How often, in all.
        report: Called with (step, evaluation) after each; True stops the training.

    Attributes:
        history: (step, evaluation) in order.
        stopped: Whether `report` asked to stop.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], Evaluation],
        checks: int,
        report: Callable[[int, Evaluation], bool],
    ) -> None:
        self.score = score
        self.checks = checks
        self.report = report
        self.steps: tuple[int, ...] = ()
        self.history: list[tuple[int, Evaluation]] = []
        self.stopped = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Plan the checks; a very short training has one after each step."""
        self.steps = plan_steps(state.max_steps, min(self.checks, state.max_steps), 0.0)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Evaluate at the planned steps.

        Raises:
            DivergedError: If a validation value is not finite.
        """
        if state.global_step not in self.steps:
            return
        evaluation = self.score(kwargs["model"])
        bad = {n: v for n, v in evaluation.values.items() if not math.isfinite(v)}
        if bad:
            raise DivergedError(f"validation gave {bad} at step {state.global_step}")
        self.history.append((state.global_step, evaluation))
        if self.report(state.global_step, evaluation):
            self.stopped = True
            control.should_training_stop = True


class MemberWatch(TrainerCallback):
    """Evaluates one of the first members as it is kept, and may end the training there.

    A training that is ended so can be resumed: the Trainer saves a checkpoint first.

    Args:
        score: Model → values over the whole validation split.
        collector: Keeps the members; it stands before this among the callbacks.
        start: Share of the training, 0 to 1, after which the first member is evaluated.
        report: Called with (step, evaluation); True ends the training.

    Attributes:
        stopped: Whether `report` asked for the end.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], Evaluation],
        collector: MemberCollector,
        start: float,
        report: Callable[[int, Evaluation], bool],
    ) -> None:
        self.score = score
        self.collector = collector
        self.start = start
        self.report = report
        self.stopped = False

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Evaluate after the step of that member."""
        steps = self.collector.steps
        if state.global_step != steps[first_from(steps, self.start, state.max_steps)]:
            return
        if self.report(state.global_step, self.score(kwargs["model"])):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True


class CheckpointMarker(TrainerCallback):
    """Marks a Trainer checkpoint as complete, after all of its files are written.

    The Trainer writes its files in place: one that a kill cut off looks like a whole one.
    """

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the marker durably, once every process has written its part."""
        assert args.output_dir is not None
        wait_for_all()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        for path in folder.rglob("*"):
            if path.is_file():  # FSDP's parts lie in folders
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        temporary = folder / f".{MARKER}"
        temporary.write_text(json.dumps({"step": state.global_step}))
        os.replace(temporary, folder / MARKER)
