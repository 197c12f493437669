"""What wrappers of a network leave in the names of its tensors, and networks without them.

`torch.compile`, FSDP and activation checkpointing put a part of their own into names, anywhere;
DistributedDataParallel, DataParallel, DeepSpeed and AveragedModel put "module." before all of
them. A network may have a part called `module` itself: of a network, classes decide; of names,
that all of them begin so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fusetune.errors import MemberError
from fusetune.members.header import TensorSpec

MARKS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP before PyTorch 2.0
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning under DeepSpeed
    }
)
"""Parts of names that no network has of its own."""

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
ELSEWHERE: Mapping[str, str] = {
    "torch._dynamo.eval_frame": "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel": "module",
    "deepspeed.runtime.engine": "module",
    "lightning.fabric.wrappers": "module",
    "lightning_fabric.wrappers": "module",
}
"""Module that defines a wrapper class → the attribute with what it wraps. These take seconds to
import, are not installed or have no public name."""

MODULE = "module."
FLAT = "_flat_param"
NETWORK = "model."
COUNTER = "n_averaged"
"""How many models an AveragedModel has averaged; it stands beside the network."""


def without_marks(name: str) -> str:
    """The name of a tensor without the parts that wrappers inside of a network added.

    >>> without_marks("bert.encoder._orig_mod.layer.0.weight")
    'bert.encoder.layer.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in MARKS)


def own_names(
    names: Iterable[str],
    *,
    collected: bool = False,
    lightning: bool = False,
    where: str | Path = "A state dict",
) -> dict[str, str]:
    """The names of a state dict → the network's own; a wrapper's counter has none.

    Args:
        names: All names of one model, as "module._orig_mod.layer.weight".
        collected: Whether our collector wrote them, which leaves no wrapper around a network.
        lightning: Whether they are of a Lightning module, which has its network as `model`.
        where: What has them, for messages.

    Raises:
        MemberError: If two tensors get one name, or parameters are flattened into one.
    """
    plain = {name: without_marks(name) for name in names}
    if flat := next((name for name in plain if name.rpartition(".")[2] == FLAT), None):
        raise MemberError(
            f"{where} has many parameters of a model as one flat tensor of FSDP ({flat}).",
            hint="Save with FSDP's FULL_STATE_DICT.",
        )
    if not collected:
        plain = _inside_module(plain)
    if lightning and all(own.startswith(NETWORK) for own in plain.values()):
        plain = _inside_module({n: own.removeprefix(NETWORK) for n, own in plain.items()})
    first: dict[str, str] = {}
    for name, own in plain.items():
        if first.setdefault(own, name) != name:
            raise MemberError(
                f"{where} has {first[own]!r} and {name!r}: without what wrappers add, both are "
                f"{own!r}.",
                hint="Save the state_dict() of the network inside of the wrapper.",
            )
    return plain


def _inside_module(plain: dict[str, str]) -> dict[str, str]:
    """Names without "module.", as often as all of them have it but a wrapper's counter."""
    while True:
        inside = {name: own for name, own in plain.items() if own != COUNTER}
        if not inside or not all(own.startswith(MODULE) for own in inside.values()):
            return plain
        plain = {name: own.removeprefix(MODULE) for name, own in inside.items()}


def places_in(model: nn.Module, tensors: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Where a checkpoint keeps the tensors of a model that is a part of what was saved.

    A Lightning module's state dict has its network under "model.", and beside it what its loss
    keeps; a network whose only part is called `module` looks as if it were wrapped.

    Args:
        model: The network.
        tensors: Of the checkpoint.

    Returns:
        Name in the model → name in the checkpoint; empty if the names are the model's own, or
        no prefix makes them so.

    Raises:
        MemberError: If the checkpoint has the model more than once.
    """
    state = inside_wrappers(model).state_dict(keep_vars=True)
    shapes = {
        without_marks(n): tuple(t.shape) for n, t in state.items() if isinstance(t, Tensor)
    }
    tied: dict[int, list[str]] = {}  # a tied tensor needs one of its names
    for name, value in state.items():
        if isinstance(value, Tensor):
            tied.setdefault(id(value), []).append(without_marks(name))
    known, there = shapes.keys(), tensors.keys()
    # Either side may have something in front: ("model.", "") or ("", "module.").
    fronts = [("", ""), *((front, "") for front in sorted(_fronts(there, known)))]
    fronts += [("", front) for front in sorted(_fronts(known, there))]
    fitting = []
    for theirs, ours in fronts:
        moved = {
            name: theirs + name.removeprefix(ours) for name in known if name.startswith(ours)
        }
        found = {
            name: other
            for name, other in moved.items()
            if other in there and tensors[other].shape == shapes[name]
        }
        if all(any(name in found for name in group) for group in tied.values()):
            fitting.append((theirs, found))
    if not fitting or (fitting[0][0] == "" and all(n == o for n, o in fitting[0][1].items())):
        return {}
    if len(fitting) > 1:
        under = " and under ".join(repr(theirs) for theirs, _ in fitting)
        raise MemberError(
            f"The members have all tensors of the model more than once: under {under}.",
            hint="Save the one that is to be fused alone.",
        )
    return fitting[0][1]


def _fronts(names: Iterable[str], ends: Collection[str]) -> set[str]:
    """What stands before the names that end, after a dot, in one of `ends`."""
    found = set()
    for name in names:
        for place, sign in enumerate(name):
            if sign == "." and name[place + 1 :] in ends:
                found.add(name[: place + 1])
    return found


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The network inside of torch.compile, DistributedDataParallel, AveragedModel and the like.

    A part of a network that is called `module` is no wrapper: the classes decide.
    """
    while (inner := _inside(model)) is not model:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module:
    inner: Any = model
    if isinstance(model, WRAPPERS):
        inner = model.module
    elif name := ELSEWHERE.get(type(model).__module__):
        inner = getattr(model, name, model)
    network: nn.Module = inner
    return network


@contextmanager
def without_wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The network inside of its wrappers, its parts without theirs until the context ends.

    Whatever saves it meanwhile writes the network's own names.
    """
    network = inside_wrappers(model)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(network.modules()):
            if inside_wrappers(parent) is not parent:
                continue  # a wrapper goes as a whole
            for name, part in list(parent.named_children()):
                if (inner := inside_wrappers(part)) is not part:
                    replaced.append((parent, name, part))
                    setattr(parent, name, inner)
        yield network
    finally:
        for parent, name, part in replaced:
            setattr(parent, name, part)
