"""Which tensors of a model each tensor of the members goes into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.dispatched import offloaded
from fusetune.members.fully_sharded import own_state
from fusetune.members.header import TensorSpec
from fusetune.members.points import Blend
from fusetune.models.quantised import describe, of_weight, quantised_layers

SHOWN = 10
HINT = (
    "Load the model from one of the members, with the class that they were trained with "
    "(and save members with `save_original_format=False` if their class renames its tensors)."
)


QUANTISED = (
    "Load the model in float32, bfloat16 or float16, or make the average of adapters with "
    "fusetune.members.average.plan."
)


def bind(
    model: nn.Module, tensors: Mapping[str, TensorSpec], takes_quantised: bool = False
) -> dict[str, tuple[Tensor, ...]]:
    """Name in the members' files → the model's tensors that take its value.

    A tied tensor stands once in the files and under several names in the model; it is one
    target. If the files have it under several names, the first takes the value. Names of
    non-persistent buffers, which old checkpoints have, go nowhere.
    Of a model on several devices, targets are where its tensors lie; of one that is spread over
    processes, they are this one's rows.

    Args:
        model: What will be filled.
        tensors: Of the members' files.
        takes_quantised: Whether the caller gives quantised layers their value in a way of its
            own; their weights have no targets.

    Raises:
        MemberError: If files and model do not name the same tensors, or shapes differ, or
            the model is quantised.
    """
    layers = quantised_layers(model)
    if layers and not takes_quantised:
        raise MemberError(
            f"The model's weights are quantised ({describe(layers)}): an average written into "
            "them would be rounded to their few levels.",
            QUANTISED,
        )
    elsewhere = {f"{name}.weight" for name in layers}
    state: dict[str, Tensor] = {
        name: value
        for name, value in own_state(model).items()
        if isinstance(value, Tensor) and not of_weight(name, layers)
    } | offloaded(model)
    buffers = {name for name, _ in model.named_buffers()}
    storages: dict[tuple[object, ...], list[str]] = {}
    for name, value in state.items():
        storages.setdefault(_identity(value), []).append(name)
    missing = [
        name
        for name, value in state.items()
        if not any(other in tensors for other in storages[_identity(value)])
    ]
    known = {*state, *buffers, *elsewhere}
    unexpected = [n for n in tensors if n not in known]
    shapes = [
        f"{n} ({tuple(state[n].shape)} in the model, {info.shape} in the members)"
        for n, info in tensors.items()
        if n in state and tuple(state[n].shape) != info.shape
    ]
    problems = [
        *_listed("of the model not in the members", missing),
        *_listed("of the members not in the model", unexpected),
        *_listed("with another shape", shapes),
    ]
    if problems:
        raise MemberError(
            "The members do not fit the model: " + "; ".join(problems) + ".", HINT
        )
    targets: dict[str, tuple[Tensor, ...]] = dict.fromkeys(tensors, ())
    for names in storages.values():
        first = next(n for n in names if n in tensors)
        targets[first] = tuple({id(state[n]): state[n] for n in names}.values())
    return targets


def tied_names(model: nn.Module, tensors: Mapping[str, TensorSpec]) -> list[tuple[str, ...]]:
    """Groups of two or more names in the files that are one tensor in the model."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in (own_state(model) | offloaded(model)).items():
        if name in tensors and isinstance(value, Tensor):
            groups.setdefault(_identity(value), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def write(target: Tensor, part: slice, values: Tensor) -> None:
    """Set elements `part` of a tensor, counted in row-major order."""
    if target.is_contiguous():
        target.view(-1)[part].copy_(values)
    else:
        index = torch.arange(part.start, part.stop, device=target.device)
        target[torch.unravel_index(index, target.shape)] = values.to(target)


def check_length(weights: Blend, k: int) -> None:
    """Raise `ValueError` unless there is one weight per member."""
    if len(weights) != k:
        raise ValueError(f"{k} members need {k} weights; got {len(weights)}.")


def listed(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first items and a count of the rest."""
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f", … and {rest} more" if rest > 0 else "")


def same_bits(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors have the same dtype and the same elements (NaN equals NaN)."""
    first, *others = tensors
    return all(
        first.dtype == other.dtype
        and torch.equal(
            first.contiguous().flatten().view(torch.uint8),
            other.contiguous().flatten().view(torch.uint8),
        )
        for other in others
    )


def _identity(value: Tensor) -> tuple[object, ...]:
    # Empty tensors and those on the meta device have no address; only the object tells.
    if value.data_ptr() == 0:
        return (id(value),)
    return (value.device, value.data_ptr(), value.shape, value.stride())


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {what} ({listed(names)})"] if names else []
