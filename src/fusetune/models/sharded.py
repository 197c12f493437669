"""A model spread over the processes of a group, as PyTorch's FSDP does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import distributed, nn

M = TypeVar("M", bound=nn.Module)
InTurn = Callable[[Callable[[], M]], M]


def shard(
    build: Callable[[], M], device: torch.device, layers: Sequence[str], in_turn: InTurn[M]
) -> M:
    """Build a model and keep this process's rows of each parameter.

    Parameters are gathered layer by layer while one computes, and given up after it.

    Args:
        build: Makes the whole model in the host's memory; each process does so in its turn.
        device: Where the rows and the computation are.
        layers: Names of the classes that are gathered as one; those that the model says must
            not be split, if none.
        in_turn: Runs a function in one process after the other.

    Returns:
        The model, of which `members.fully_sharded.is_sharded` is true.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))

    def spread() -> M:
        model = build()
        names = set(layers or getattr(model, "_no_split_modules", None) or ())
        for module in reversed(list(model.modules())):
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model.to(device)

    return in_turn(spread)
