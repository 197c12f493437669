"""A model that accelerate has laid over several devices: where its tensors really are.

`from_pretrained(device_map=…)` puts each layer on a device and moves what is computed from one
to the next. A layer that no accelerator has room for stays in the host's memory and is copied
to one while it computes; the model itself then has an empty tensor in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fusetune.errors import MemberError


def is_dispatched(model: nn.Module) -> bool:
    """Whether layers lie on devices of their own, so that the model cannot be moved."""
    return any(True for module in model.modules() for _ in _hooks(module))


def offloaded(model: nn.Module) -> dict[str, Tensor]:
    """Name → the tensor in the host's memory that is copied to a device to compute.

    Writing into it changes the model. None for models that are on their devices.

    Raises:
        MemberError: If a layer lies on the disk: it could not be written into.
    """
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        for hook in _hooks(module):
            if not hook.offload or hook.weights_map is None:
                continue
            deep = hook.place_submodules
            names = [name for name, _ in module.named_parameters(recurse=deep)]
            if hook.offload_buffers:
                names += [name for name, _ in module.named_buffers(recurse=deep)]
            for name in names:
                full = f"{place}.{name}" if place else name
                tensor = _kept(hook.weights_map, name)
                if tensor is None:
                    raise MemberError(
                        f"model.device_map: {full} lies on the disk, where no average can be "
                        "written to.",
                        "Take more or larger devices, a smaller precision, or adapters.",
                    )
                found[full] = tensor
    return found


def _kept(weights: Any, name: str) -> Tensor | None:
    """A tensor of accelerate's map of weights, if it holds it in memory."""
    name = getattr(weights, "prefix", "") + name
    weights = getattr(weights, "dataset", weights)
    held: dict[str, Tensor] = getattr(weights, "state_dict", weights)
    return held.get(name)


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Accelerate's hooks of one module that move tensors; it is not imported for that."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if hasattr(each, "weights_map"):
            yield each
