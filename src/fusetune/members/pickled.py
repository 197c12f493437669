"""Weights out of files of `torch.save`, read so that none of their code can run.

`torch.load` with `weights_only` knows tensors, numbers, texts and containers and nothing else:
a pickle that names another class or function is refused before anything of it is called.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.header import DTYPES

NESTED = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "weights",
)
"""Under which key training programs put the weights beside optimiser and counters."""

RECORD = re.compile(r"(.+_)?(loss|accuracy|metric|score|rng_state)")
"""Names of tensors that a training program notes beside, or instead of, a model's."""

LIGHTNING = "pytorch-lightning_version"
STEPS = ("global_step", "global_steps", "step")


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a file holds.

    Attributes:
        tensors: Name in the file → tensor, mapped from the file where its make allows that; of
            tied ones, the first.
        step: Optimiser steps done, where the file says it.
        lightning: Whether Lightning wrote it, of a module with a network in it.
    """

    tensors: Mapping[str, Tensor]
    step: int | None
    lightning: bool


def read(file: Path) -> Pickled:
    """The weights of a file, under the names that it gives them.

    They are looked for under the usual keys first: the tensors of a training's record, its loss
    or the state of a generator, are no model.

    Raises:
        MemberError: If the file holds other things than weights_only allows, no weights, or
            weights in several places, or cannot be read.
    """
    content = _load(file)
    weights, step = _find_weights(file, content)
    tensors = {str(n): t.detach() for n, t in weights.items() if isinstance(t, Tensor)}
    records = sorted(name for name in tensors if RECORD.fullmatch(name))
    tensors = {name: t for name, t in tensors.items() if name not in records}
    integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if all(tensor.dtype in integers for tensor in tensors.values()):
        raise _without_weights(file, content, records)
    if packed := next((n for n in weights if "_packed_params" in str(n)), None):
        raise MemberError(
            f"{file} holds quantised weights ({packed}), whose levels cannot be averaged.",
            "Save the model as it was before it was quantised.",
        )
    for name, tensor in tensors.items():
        _check(file, name, tensor)
    lightning = isinstance(content, Mapping) and LIGHTNING in content
    return Pickled(_without_ties(tensors), step, lightning)


def _find_weights(file: Path, content: Any) -> tuple[Mapping[Any, Any], int | None]:
    """The mapping with the weights, of those in one another; the step that stands beside it."""
    if not isinstance(content, Mapping):
        return {}, None
    counts = (content.get(key) for key in STEPS)
    step = next((n for n in counts if isinstance(n, int)), None)
    inside = {
        key: _find_weights(file, content[key])
        for key in NESTED
        if isinstance(content.get(key), Mapping)
    }
    inside = {key: found for key, found in inside.items() if found[0]}
    if len(inside) > 1:
        raise MemberError(
            f"{file} holds weights in several places: under {', '.join(inside)}.",
            "Save one model's state_dict() by itself.",
        )
    for weights, inner_step in inside.values():
        return weights, step if inner_step is None else inner_step
    return (content if _has_tensors(content) else {}), step


def _without_weights(file: Path, content: Any, records: Sequence[str]) -> MemberError:
    """The error for a file without weights, which names the tensors that it has instead."""
    others: list[str] = []
    if isinstance(content, Mapping):
        others = [
            str(key)
            for key, value in content.items()
            if isinstance(value, Mapping) and _has_tensors(value)
        ]
    if records:
        what = f"of tensors it has only {', '.join(records)}, which are no model's"
    elif others:
        what = f"tensors stand under {', '.join(others)}, and weights are looked for under "
        what += ", ".join(NESTED)
    else:
        what = "neither tensors under their names, nor any under " + ", ".join(NESTED)
    return MemberError(f"{file} holds no weights: {what}.", "Save the model's state_dict().")


def _load(file: Path) -> Any:
    mapped = zipfile.is_zipfile(file)  # older makes of torch.save have to be read as a whole
    try:
        return torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise _refused(file, str(error)) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemberError(
            f"{file} cannot be read as a file of torch.save: {said}",
            "Copy or save this checkpoint again.",
        ) from error


def _refused(file: Path, said: str) -> MemberError:
    named = re.search(r"(?:GLOBAL|instantiate) ([\w.]+)", said)
    what = (
        f"holds {named[1]}, which is neither tensor nor plain value"
        if named
        else "is damaged, or holds more than tensors and plain values"
    )
    if file.suffix == ".ckpt":
        hint = (
            "Lightning keeps hyper-parameters and callbacks beside the weights: write them "
            "alone, torch.save(module.state_dict(), 'weights.pt'), or leave out of "
            "save_hyperparameters() what is no plain value."
        )
    else:
        hint = "Save the weights alone: torch.save(model.state_dict(), 'weights.pt')."
    return MemberError(f"{file} was not loaded: it {what}. Nothing of it was run.", hint)


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _check(file: Path, name: str, tensor: Tensor) -> None:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    if not plain or tensor.layout is not torch.strided or tensor.is_quantized:
        raise MemberError(
            f"{file} holds {name!r} as a {type(tensor).__name__} of layout {tensor.layout}, "
            "which cannot be averaged.",
            "Save whole, dense tensors.",
        )
    if tensor.dtype not in DTYPES.values():
        raise MemberError(
            f"{file} stores {name!r} as {tensor.dtype}, which cannot be averaged.",
            f"Save the model in one of {', '.join(DTYPES)}.",
        )


def _without_ties(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once: tied ones have one memory, and models tie them again."""
    found: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in seen or not tensor.numel():
            found[name] = tensor
        seen.add(place)
    return found
