"""What each field of `transformers.TrainingArguments` takes, from its type and its default.

The dataclass itself checks few types: a text in the place of a number would show in the first
step of a training, a batch size of 4.0 in the data loader.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from fusetune.errors import closest
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

PUBLISHING = ("push_to_hub", "hub_", "trackio_")
"""How the names of those fields begin that upload a training, its model or its logs."""

EVALUATING: Mapping[str, tuple[Any, ...]] = {
    "eval_on_start": (True,),
    "save_strategy": ("best",),
    "lr_scheduler_type": ("reduce_lr_on_plateau", "greedy"),
}
"""Values that need evaluations by the Trainer itself, which is given no data for them."""

HIGHEST: Mapping[str, float] = {
    "warmup_ratio": 1.0,
    "label_smoothing_factor": 1.0,
    "dataloader_num_workers": 1024,  # each is a process
}
"""The largest value of fields that are shares, or that ask for more than a machine has."""

DEFAULTS: Mapping[str, Any] = {
    "report_to": "none",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # a NaN loss must be seen, not smoothed over
    "optim": "adamw_torch_fused",
}
"""Where they differ from those of Transformers."""

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    dict: "a mapping",
}
_PLAIN = {*_WORDS, NoneType, Literal}
_SWITCH: TypeAdapter[bool] = TypeAdapter(bool)  # knows yes, no, on, off, 1 and 0


@cache
def _metadata(key: str) -> Mapping[str, Any]:
    """What the dataclass says of its fields under a key, where it says something.

    "choices" are the words that a field of texts knows, "const" is what a field stands at when
    it is named without a value.
    """
    fields = dataclasses.fields(TrainingArguments)
    return {f.name: f.metadata[key] for f in fields if key in f.metadata}


@cache
def _fields() -> Mapping[str, tuple[Any, Any]]:
    """The fields of `TrainingArguments`: name → (type, default; None where it is made)."""
    hints = get_type_hints(TrainingArguments)
    return {
        f.name: (hints[f.name], None if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(TrainingArguments)
    }


def understood(name: str, value: Any) -> Any:
    """A value of a recipe as its field of `TrainingArguments` takes it.

    What a value says beyond doubt is taken: the text "5e-5" for a number, 4.0 for a whole
    number, "no" for false.

    Args:
        name: Of the field, or an older name of it.
        value: As YAML has it.

    Returns:
        Plain data.

    Raises:
        ValueError: If the field cannot have that value, with the rule.
    """
    hint, default = _fields()[ALIASES.get(name, name)]
    default = DEFAULTS.get(name, default)
    kinds = get_args(hint) or (hint,)
    if name in SECRETS and value is not None:
        raise ValueError(
            "a recipe is kept and shown; give the token in the environment, as HF_TOKEN"
        )
    if value is None and NoneType not in kinds:
        raise ValueError(f"must be {_wanted(kinds)}, got null; leave it out for {default!r}")
    if value is not None and value is not _metadata("const").get(name):
        value = _typed(name, value, hint, default)
    if name.startswith(PUBLISHING) and value not in (None, False, default):
        raise ValueError(
            "a recipe publishes nothing; leave it out, and publish the fused model with "
            "`fusetune push`"
        )
    if value in EVALUATING.get(name, ()):
        raise ValueError(
            f"{_short(value)} needs evaluations by the Trainer, which makes none here: the "
            "search, the members and the choice of w have their own; leave it out"
        )
    return value


def _typed(name: str, value: Any, hint: Any, default: Any) -> Any:
    """A value that is not null as one of its field's type; see `understood`."""
    kinds = get_args(hint) or (hint,)
    if not _PLAIN.issuperset(_origin(k) for k in kinds if not _is_enum(k)):
        raise ValueError("cannot be given in a recipe; leave it out")
    options = [o.value for k in kinds if _is_enum(k) for o in k] or [
        *_metadata("choices").get(name, ())
    ]
    if options:
        return _option(name, value, options)
    if str not in kinds and {int, float}.intersection(kinds):
        return _number(name, value, whole=float not in kinds, default=default)
    try:
        if str not in kinds and bool in kinds:
            return _SWITCH.validate_python(value)
        TypeAdapter(hint).validate_python(value)
    except (ValidationError, RecursionError):
        raise _refused(_wanted(kinds), value) from None
    file = isinstance(value, str) and dict in map(_origin, kinds)
    if file and not value.startswith("{") and not Path(value).is_file():
        raise ValueError(f"must be a mapping, or a file of JSON that is there, got {value!r}")
    return value


def _number(name: str, value: Any, *, whole: bool, default: Any) -> int | float:
    """A number within its field's bounds, which follow from its default.

    None of these fields has a meaning below 0, but those whose default is -1. Counts that are 1
    or more by default divide, or are divided by: 0 is none. A float field whose default
    is an `int` counts steps from 1 on, and is a share of all steps below.
    """
    try:
        number = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        raise _refused(_WORDS[int if whole else float], value) from None
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, got {value}")
    steps = not whole and _counts_steps(name)
    if whole or (steps and not 0 < number < 1):
        if number != int(number):
            raise _refused(_WORDS[int] + (" of steps, or a share below 1" * steps), value)
        number = int(number)
    counts = type(default) is int and default >= 1
    least = min(0, default or 0)
    if number < least or (number == 0 and counts):
        rule = "above 0" if counts else f"at least {least:g}"
        raise ValueError(f"must be {rule}, got {value}")
    if number > HIGHEST.get(name, math.inf):
        raise ValueError(f"must be at most {HIGHEST[name]:g}, got {value}")
    return number


def _counts_steps(name: str) -> bool:
    """Whether a field has a number of steps from 1 on, and a share of all steps below."""
    hint, default = _fields()[ALIASES.get(name, name)]
    return hint is float and type(default) is int and name not in HIGHEST


def _option(name: str, value: Any, options: list[Any]) -> Any:
    """One of the words that a field knows; YAML 1.1 reads the word `no` as false."""
    known = [*options, *(SCHEDULES if name == "lr_scheduler_type" else ())]
    value = "no" if value is False else value
    if value not in known:
        near = closest(value, known) if isinstance(value, str) else ""
        listed = ", ".join(known)
        raise ValueError(
            f"TrainingArguments refuses {_short(value)}{near}; it must be one of {listed}"
        )
    return value


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind


def _wanted(kinds: tuple[Any, ...]) -> str:
    words = [_WORDS[_origin(k)] for k in kinds if _origin(k) in _WORDS]
    return " or ".join(dict.fromkeys(words))


def _refused(wanted: str, value: Any) -> ValueError:
    return ValueError(f"must be {wanted}, got {_short(value)}")


def _short(value: Any) -> str:
    return "true" if value is True else "false" if value is False else repr(value)[:100]


def understood_or_given(name: str, value: Any) -> Any:
    """As `understood`; a value that is refused, or of an unknown name, stays what it is."""
    try:
        return understood(name, value) if _is_known(name) else value
    except ValueError:
        return value


def type_problem(name: str, value: Any) -> str | None:
    """Why a value cannot be that of a field of `TrainingArguments`; None if it can.

    Names that are no field are not judged here.
    """
    try:
        _ = understood(name, value) if _is_known(name) else None
    except ValueError as error:
        return str(error)
    return None


def range_problem(name: str, low: Any, high: Any, step: Any) -> str | None:
    """Why a field cannot take what lies between two of its values; None if it can.

    Args:
        name: Of the field.
        low: The lower bound, as `understood` gives it.
        high: The upper bound.
        step: Between two values; None where every value between the bounds is one.
    """
    if not _is_known(name):
        return None
    hint, _ = _fields()[ALIASES.get(name, name)]
    kinds = get_args(hint) or (hint,)
    if not {int, float}.intersection(kinds):
        return "is no number; give choices"
    if _counts_steps(name) and low < 1 <= high and (low > 0 or high == 1):
        return (
            f"from {low:g} to {high:g}: values below 1 are a share of all steps, others a "
            "number of steps; give bounds of one kind"
        )
    whole = isinstance(low, int) and isinstance(high, int)
    if whole and step is not None and step != int(step):
        return f"takes whole numbers, and so must step be; got {step}"
    return None


def _is_known(name: str) -> bool:
    return name in ALIASES or name in _fields()
