"""A model whose parameters are spread over the processes of a group: FSDP.

Each process holds some rows of every parameter. An average is made the same way: each process
reads and averages its own rows of the members, and writes them where they lie, so that none
holds a whole model, let alone all members.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.checkpoints.wrappers import inside_wrappers, without_marks
from fusetune.members.header import TensorSpec
from fusetune.members.member import Member, Members
from fusetune.members.points import OwnModel, Point


def is_sharded(model: nn.Module) -> bool:
    """Whether no process holds the whole model by itself."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    first = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return first or any(_spread(parameter) for parameter in model.parameters())


def own_state(model: nn.Module) -> dict[str, Any]:
    """The model's state as this process holds it: its own rows of parameters that are spread.

    The names are those of the network inside of its wrappers. Writing into the tensors changes
    the model.
    """
    state = inside_wrappers(model).state_dict(keep_vars=True)
    own = {id(v): v.detach().to_local() for v in state.values() if _spread(v)}
    return {without_marks(name): own.get(id(value), value) for name, value in state.items()}


def give_up_gathered(model: nn.Module) -> None:
    """Free parameters that are gathered from all processes: their values may be old."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


def keep_outer(model: nn.Module) -> None:
    """Let parameters outside of the layers stay once they are gathered, for calls of parts."""
    keep = getattr(model, "set_reshard_after_forward", None)
    if callable(keep):
        keep(False, recurse=False)


class OwnRows:
    """The members as one process sees them: of each parameter the rows that it holds.

    Args:
        pool: Whole members.
        model: Spread by `torch.distributed.fsdp.fully_shard`.

    Raises:
        MemberError: If a parameter is cut in another way than by rows.
    """

    def __init__(self, pool: Members, model: nn.Module) -> None:
        self._pool = pool
        self._rows = _rows(model, pool.tensors)
        self.tensors: Mapping[str, TensorSpec] = {
            name: self._rows[name].spec(info) if name in self._rows else info
            for name, info in pool.tensors.items()
        }

    @property
    def members(self) -> Sequence[Member]:
        """The k checkpoints."""
        return self._pool.members

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the fused model."""
        return self._pool.config

    @property
    def constant(self) -> frozenset[str]:
        """Tensors that are equal in all members."""
        return self._pool.constant

    def load_tensor(self, index: int, name: str) -> Tensor:
        """This process's rows of a tensor of member `index`."""
        return self._own(name, self._pool.load_tensor(index, name))

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Elements of this process's rows, written into `out`."""
        first = self._rows[name].first if name in self._rows else 0
        self._pool.read_part(index, name, slice(first + part.start, first + part.stop), out)

    def point(self, point: Point) -> Point:
        """A model of its own as its rows; any other point as it is."""
        if not isinstance(point, OwnModel):
            return point
        own = {name: self._own(name, t) for name, t in point.tensors.items()}
        return OwnModel(own, point.digest)

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        rows = self._rows.get(name)
        if rows is None:
            return tensor
        flat = tensor.reshape(-1)[rows.first : rows.first + math.prod(rows.shape)]
        return flat.view(rows.shape)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where a process's part stands in the flattened tensor, and its shape."""

    first: int
    shape: tuple[int, ...]

    def spec(self, info: TensorSpec) -> TensorSpec:
        return TensorSpec(info.dtype, self.shape)


def _rows(model: nn.Module, known: Mapping[str, TensorSpec]) -> dict[str, _Rows]:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    found: dict[str, _Rows] = {}
    state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if name not in known or not _spread(value):
            continue
        if [type(place) for place in value.placements] != [Shard] or value.placements[0].dim:
            raise MemberError(
                f"{name} is spread as {value.placements}, and averages are made of rows.",
                "Leave the placement of parameters to fully_shard.",
            )
        shape, offset = compute_local_shape_and_global_offset(
            value.shape, value.device_mesh, value.placements
        )
        found[name] = _Rows(offset[0] * math.prod(value.shape[1:]), tuple(shape))
    return found


def _spread(value: object) -> bool:
    # Where nothing has imported its module, which takes a second, no tensor is of the class.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
