"""A model whose parameters are spread over the processes of a training: FSDP.

Each process holds a part of every parameter. A member has to be whole: the parts are gathered
in the memory of the first process, tensor by tensor, while all of them take part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def from_first(find: Callable[[], T]) -> T:
    """What the first process finds, in all of them; alone, what this one does."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return find()
    box: list[Any] = [find() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found


def wait_for_all() -> None:
    """Until every process of a training is here; alone, not at all."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def gather(model: nn.Module) -> dict[str, Tensor]:
    """Name → whole tensor in the host's memory, in the first process; nothing in the others.

    Every process has to call it at the same step.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        name: value
        for name, value in get_model_state_dict(model, options=options).items()
        if isinstance(value, Tensor)
    }
