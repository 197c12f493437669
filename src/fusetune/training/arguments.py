"""λ and the recipe's arguments → `transformers.TrainingArguments`."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from fusetune.errors import RecipeError
from fusetune.training.fields import ALIASES, DEFAULTS
from fusetune.training.schedules import SCHEDULES


def complete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Some arguments by the names they have today, and all others at their defaults."""
    fields = dataclasses.fields(TrainingArguments)
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return {**given, **DEFAULTS, **_renamed(arguments)}


def _renamed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of today; a warm-up of the whole training stays one."""
    values = {ALIASES.get(name, name): value for name, value in arguments.items()}
    if arguments.get("warmup_ratio") == 1:  # as warmup_steps, 1 would be a single step
        values["warmup_steps"] = math.nextafter(1.0, 0.0)
    return values


def build(
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    epochs: float,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
) -> TrainingArguments:
    """Training arguments of one trajectory.

    Args:
        folder: Where the Trainer keeps its own checkpoints.
        arguments: Any fields of `TrainingArguments`, λ included.
        epochs: Length of the training.
        seed: Of the data order and the dropout.
        device: "cpu", or a device that the Trainer finds by itself.
        precision: "float32", "bfloat16" or "float16" (mixed precision).

    Raises:
        RecipeError: If `TrainingArguments` refuses a value.
    """
    values = {**DEFAULTS, **_renamed(copy.deepcopy(dict(arguments)))}  # some change in place
    schedule = values.get("lr_scheduler_type")
    if schedule in SCHEDULES:  # our own; the Trainer builds it from `schedules`
        values["lr_scheduler_type"] = "constant"
    values |= {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "seed": seed,
        "data_seed": seed,
        "bf16": precision == "bfloat16",
        "fp16": precision == "float16",
        "use_cpu": device == "cpu",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.startswith("cuda"),
    }
    try:
        settings = TrainingArguments(**values)
    except Exception as error:  # whatever the libraries behind a field raise
        raise RecipeError(
            f"transformers.TrainingArguments refuses these arguments: {error}",
            "Check train.arguments and search.space.",
        ) from error
    if settings.fsdp and settings.parallel_mode != ParallelMode.DISTRIBUTED:
        raise RecipeError(
            "train.arguments.fsdp: spreads a training over several processes, and this is one.",
            "Start one per device: torchrun --nproc-per-node=DEVICES -m fusetune run …; or "
            "take model.device_map.",
        )
    return settings
