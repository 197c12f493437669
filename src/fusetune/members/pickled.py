"""Weights out of files of `torch.save`, read so that none of their code can run.

`torch.load` with `weights_only` knows tensors, numbers, texts and containers and nothing else:
a pickle that names another class or function is refused before anything of it is called.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.header import DTYPES

NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Under which key training programs put the weights beside optimiser and counters."""

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
INSIDE = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
LIGHTNING = "pytorch-lightning_version"
STEPS = ("global_step", "global_steps", "step")


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a file holds.

    Attributes:
        tensors: Name → tensor, mapped from the file where its make allows that; of tied
            ones, the first.
        step: Optimiser steps done, where the file says it.
    """

    tensors: Mapping[str, Tensor]
    step: int | None


def read(file: Path) -> Pickled:
    """The weights of a file.

    Names lose what wrappers put before them: "module.", "_orig_mod.", and, of a Lightning
    checkpoint whose module keeps its network as `self.model`, "model.".

    Raises:
        MemberError: If the file holds other things than weights_only allows, no weights, or
            cannot be read.
    """
    content = _load(file)
    weights, step = content, None
    lightning = isinstance(content, Mapping) and LIGHTNING in content
    while isinstance(weights, Mapping) and not _has_tensors(weights):
        counts = (weights.get(key) for key in STEPS)
        step = next((n for n in counts if isinstance(n, int)), step)
        inner = (weights.get(key) for key in NESTED)
        weights = next((found for found in inner if isinstance(found, Mapping)), None)
    if not isinstance(weights, Mapping):
        raise MemberError(
            f"{file} holds no weights: neither tensors under their names, nor any under "
            f"{', '.join(NESTED)}.",
            "Save the model's state_dict().",
        )
    tensors = {str(n): t.detach() for n, t in weights.items() if isinstance(t, Tensor)}
    tensors = _unwrapped(tensors, lightning=lightning)
    for name, tensor in tensors.items():
        _check(file, name, tensor)
    return Pickled(_without_ties(tensors), step)


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


def _unwrapped(tensors: dict[str, Tensor], *, lightning: bool) -> dict[str, Tensor]:
    for part in INSIDE:
        tensors = {name.replace(part, ""): tensor for name, tensor in tensors.items()}
    prefixes = [*WRAPPERS, *WRAPPERS]  # each may be around the other
    if lightning:
        prefixes = [*prefixes, "model.", *WRAPPERS]
    for prefix in prefixes:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


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
