"""A model whose parameters are spread over the processes of a training: FSDP.

Each process holds a part of every parameter. A member has to be whole: the parts are gathered
in the memory of the first process, tensor by tensor, while all of them take part.
"""

from __future__ import annotations

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether no process holds the whole model by itself."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    first = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return first or any(isinstance(parameter, DTensor) for parameter in model.parameters())


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
