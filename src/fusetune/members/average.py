"""θ̄(w) = Σ w_i θ_i, or a model of its own, into a model or as a state dict.

Two forms with one interface and one kernel, and two for adapters: on a base that can be written
into (`adapter_average`), and beside one that is quantised (`quantised_average`).
`ResidentAverage` holds all members in memory and the model's parameters are views on one flat
buffer, so that a new w costs one pass over the members at memory speed. `StreamingAverage`
reads the members' files each time and needs almost no memory. Both give the same bits on a
CPU. Tensors that are equal in all members are kept once and not averaged.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from fusetune.members.adapter_average import AdapterAverage
from fusetune.members.averaging import Average
from fusetune.members.averaging_plan import AveragingPlan, Form, choose
from fusetune.members.dispatched import is_dispatched
from fusetune.members.fully_sharded import is_sharded
from fusetune.members.layout import TILE, Group
from fusetune.members.member import Members
from fusetune.members.mixing import Mixing
from fusetune.members.points import Blend, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.quantised_average import QuantisedAverage
from fusetune.members.streaming import StreamingAverage
from fusetune.models.quantised import quantised_layers

__all__ = [
    "AdapterAverage",
    "Average",
    "QuantisedAverage",
    "ResidentAverage",
    "StreamingAverage",
    "build",
    "for_files",
    "plan",
]

logger = logging.getLogger(__name__)

DEVICE_TILE = 1 << 20  # columns; on an accelerator, fewer and larger calls
CPU = torch.device("cpu")


class ResidentAverage(Average):
    """All members in memory; the model's parameters are views on one buffer per dtype.

    Memory is k copies of the members as stored plus the buffer (`required_bytes`). A
    model tensor whose dtype is not the buffer's (a bfloat16 model) is written by a copy, and so
    are the rows of a model that is spread over processes.

    Args:
        pool: k members.
        model: Moved to `device`; keeps its values until the first `into_model`.
        device: Where the model lives, and averages are made.
        host: Keep the members in the host's memory, pinned, and move tile by tile.
    """

    def __init__(
        self,
        pool: Members,
        model: nn.Module,
        *,
        device: str | torch.device = CPU,
        host: bool = False,
    ) -> None:
        device = torch.device(device)
        self._home = CPU if host else device
        spread = is_sharded(model)
        if not spread:
            model.to(device)
        tile = TILE if device.type == "cpu" else DEVICE_TILE
        super().__init__(pool, model, tile, device)
        self._blocks: dict[torch.dtype, Tensor] = {}
        self._flats: dict[torch.dtype, Tensor] = {}
        self._views: list[tuple[Tensor, Tensor]] = []  # model's tensor, its part of a flat
        self._copies: list[tuple[Tensor, Tensor]] = []  # the same, for other dtypes
        self._converted: dict[str, Tensor] = {}  # part of a flat, of what is converted
        for group in self._layout.groups:
            self._blocks[group.dtype] = self._read(group)
            flat = torch.zeros(group.width, dtype=group.accumulator, device=device)
            self._flats[group.dtype] = flat
            for slot in group.slots:
                part = flat[slot.start : slot.stop].view(slot.shape)
                if slot.name in self._bound.waits_for_others:
                    self._converted[slot.name] = part
                for target in self.targets[slot.name]:
                    shares = target.dtype == flat.dtype and not spread
                    (self._views if shares else self._copies).append((target, part))
        for target, part in self._views:
            part.copy_(target.detach())
        self._share()

    def _take_over(self, own: OwnModel) -> None:
        self._share()
        super()._take_over(own)

    def _mix_into_model(self, point: Blend) -> None:
        self._share()
        with torch.no_grad():
            for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
                mixing = self._mixing(point, group)
                flat = self._flats[group.dtype]
                for tile in range(group.num_tiles):
                    rows = self._rows(group, tile, mixing)
                    mixing(kernel, rows, tile, flat[group.columns(tile)])
            for target, part in self._copies:
                target.copy_(part)
            for name, part in self._converted.items():
                self._bound.put(name, part)

    def _rows(self, group: Group, tile: int, mixing: Mixing) -> Tensor:
        columns = group.columns(tile)
        rows = self._blocks[group.dtype][tile, :, : columns.stop - columns.start]
        return rows.to(self._device, non_blocking=True)

    def _read(self, group: Group) -> Tensor:
        """The block of one group, `tiles x k x T`, from the files."""
        shape = (group.num_tiles, self._k, group.tile)
        pinned = self._home.type == "cpu" and self._device.type == "cuda"
        block = torch.zeros(shape, dtype=group.dtype, device=self._home, pin_memory=pinned)
        for i in range(self._k):  # member by member: each file is read once, in order
            for tile in range(group.num_tiles):
                for piece in group.pieces(tile):
                    source = self.pool.load_tensor(i, piece.name).view(-1)
                    block[tile, i, piece.tile].copy_(source[piece.tensor])
        return block

    def _share(self) -> None:
        """Let the model's tensors be views on the flat buffers, if they are not yet."""
        for target, part in self._views:
            if target.data_ptr() == part.data_ptr():
                continue
            if target.dtype != part.dtype or target.device != part.device:
                raise ValueError(
                    f"The model was moved to {target.device}, {target.dtype} after "
                    f"ResidentAverage was built for {part.device}, {part.dtype}."
                )
            target.data = part


def plan(
    pool: Members,
    model: nn.Module,
    *,
    device: str | torch.device = CPU,
    limit: int | None = None,
    form: Form | None = None,
    apart: bool = False,
) -> Average:
    """The fastest form whose memory is there; see `averaging_plan.choose`.

    Args:
        pool: k members.
        model: Moved to `device`.
        device: Where the model is evaluated.
        limit: Bytes that members may take; by default most of what is free.
        form: To have this form whatever fits.
        apart: Average the factors A and B of adapters apart, which is not exact.
    """
    planned = choose(pool, device=device, limit=limit, form=form)
    return build(planned, pool, model, device, apart=apart)


def for_files(pool: MemberPool, *, apart: bool = False) -> Average:
    """An average without a model, for writing files: nothing of whole models is kept."""
    if pool.adapters is not None:
        return AdapterAverage(pool, None, apart=apart)
    return StreamingAverage(pool, None)


def build(
    planned: AveragingPlan,
    pool: Members,
    model: nn.Module,
    device: str | torch.device = CPU,
    *,
    apart: bool = False,
) -> Average:
    """The average that a plan describes; the model is moved to `device`.

    One that lies on several devices stays there, and averages are written into its tensors
    piece by piece: the members are read from the disk, and no process has the model twice.
    So they are if the memory is not there after all. Of a model that is spread over processes,
    each has its own rows, in the form of the plan.
    """
    if isinstance(pool, MemberPool):
        pool.take_names_of(model)
    device = torch.device(device)
    dispatched = is_dispatched(model)
    stays = dispatched or is_sharded(model)
    if planned.form == "adapters":
        assert isinstance(pool, MemberPool)
        make = QuantisedAverage if quantised_layers(model) else AdapterAverage
        return make(pool, model, device=device, apart=apart)
    if planned.form != "streaming" and not dispatched:
        try:
            return ResidentAverage(pool, model, device=device, host=planned.form == "host")
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or "memory" in str(error)):
                raise
            logger.warning("The memory for all members could not be had (%s).", error)
    elif not dispatched:
        logger.warning("The memory does not hold all members: %s.", planned)
    if not stays:
        model.to(device)
    return StreamingAverage(pool, model)
