"""λ and the recipe's arguments → `transformers.TrainingArguments`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from fusetune.errors import RecipeError
from fusetune.training.schedules import SCHEDULES

# Older names that people and papers still write, with what they are called now.
ALIASES = {"warmup_ratio": "warmup_steps"}

# Fields that fusetune sets itself, with the key of the recipe that decides them.
OWN = {
    "output_dir": "the run folder",
    "num_train_epochs": "train.epochs",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "use_cpu": "model.device",
    "disable_tqdm": "--quiet",
    "remove_unused_columns": "the task",
    "full_determinism": "seed",
    "eval_strategy": "the search",
    "load_best_model_at_end": "the choice of w",
}


SECRETS = ("hub_token", "push_to_hub_token")
"""Fields that hold a secret, which a recipe must not: it is kept, shown and handed on."""

DEFAULTS: Mapping[str, Any] = {
    "report_to": "none",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # a NaN loss must be seen, not smoothed over
    "optim": "adamw_torch_fused",
}
"""Where they differ from those of Transformers."""


@cache
def _hints() -> Mapping[str, Any]:
    return get_type_hints(TrainingArguments)


@cache
def _type_of(name: str) -> TypeAdapter[Any] | None:
    hint = _hints().get(ALIASES.get(name, name))
    kinds = get_args(hint) or (hint,)
    if hint is None or not {int, float, bool, NoneType}.issuperset(kinds):
        return None
    return TypeAdapter(hint)


def type_problem(name: str, value: Any) -> str | None:
    """Why a value cannot be that of a field of `TrainingArguments`; None if it can.

    The dataclass itself checks few types: a text in the place of a number would show in the
    first step of a training. Fields that are no numbers and no switches are left to it.
    """
    if name in SECRETS:
        return "a recipe is kept and shown; give the token in the environment, as HF_TOKEN"
    known = _type_of(name)
    if known is None or value is None:
        return None
    try:
        known.validate_python(value)
    except ValidationError as error:
        return f"{error.errors()[0]['msg']}, got {str(value)[:100]!r}"
    except (OverflowError, RecursionError) as error:
        return f"{error}"
    return None


def complete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Some arguments by the names they have today, and all others at their defaults."""
    fields = dataclasses.fields(TrainingArguments)
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return {**given, **DEFAULTS, **_renamed(arguments)}


def _renamed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(name, name): value for name, value in arguments.items()}


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
