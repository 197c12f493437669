"""θ̄(w) = Σ w_i θ_i, or a model of its own, into a model or as a state dict.

Two forms with one interface and one kernel. `ResidentAverage` holds all members in memory
and the model's parameters are views on one flat buffer, so that a new w costs one pass over
the members at memory speed. `StreamingAverage` reads the members' files each time and needs
almost no memory. Both give the same bits on a CPU.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from fusetune.members.averaging import Average
from fusetune.members.binding import write
from fusetune.members.kernel import Mix
from fusetune.members.layout import TILE, Group
from fusetune.members.member import Members
from fusetune.members.memory import available_bytes, required_bytes
from fusetune.members.points import Mixture, OwnModel

__all__ = ["Average", "ResidentAverage", "StreamingAverage", "plan"]

logger = logging.getLogger(__name__)

DEVICE_TILE = 1 << 20  # columns; on an accelerator, fewer and larger calls
CPU = torch.device("cpu")


class ResidentAverage(Average):
    """All members in memory; the model's parameters are views on one buffer per dtype.

    Memory is k copies of the members as stored plus the buffer (`required_bytes`). A
    model tensor whose dtype is not the buffer's (a bfloat16 model) is written by a copy.

    Args:
        pool: k members.
        model: Moved to `device`; keeps its values until the first `into_model`.
        device: Where members and model live.
    """

    def __init__(
        self, pool: Members, model: nn.Module, *, device: str | torch.device = CPU
    ) -> None:
        device = torch.device(device)
        model.to(device)
        tile = TILE if device.type == "cpu" else DEVICE_TILE
        super().__init__(pool, model, tile, device)
        self._blocks: dict[torch.dtype, Tensor] = {}
        self._flats: dict[torch.dtype, Tensor] = {}
        self._views: list[tuple[Tensor, Tensor]] = []  # model's tensor, its part of a flat
        self._copies: list[tuple[Tensor, Tensor]] = []  # the same, for other dtypes
        for group in self._layout.groups:
            self._blocks[group.dtype] = self._read(group)
            flat = torch.zeros(group.width, dtype=group.accumulator, device=device)
            self._flats[group.dtype] = flat
            for slot in group.slots:
                part = flat[slot.start : slot.stop].view(slot.shape)
                for target in self.targets[slot.name]:
                    shares = target.dtype == flat.dtype
                    (self._views if shares else self._copies).append((target, part))
        for target, part in self._views:
            part.copy_(target.detach())
        self._share()

    def _take_over(self, own: OwnModel) -> None:
        self._share()
        super()._take_over(own)

    def _mix_into_model(self, weights: Mixture) -> None:
        self._share()
        with torch.no_grad():
            for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
                mix = Mix.of(weights, group.accumulator, self._device)
                flat = self._flats[group.dtype]
                for tile in range(group.num_tiles):
                    kernel(self._rows(group, tile, mix), mix, flat[group.columns(tile)])
            for target, part in self._copies:
                target.copy_(part)

    def _rows(self, group: Group, tile: int, mix: Mix) -> Tensor:
        columns = group.columns(tile)
        return self._blocks[group.dtype][tile, :, : columns.stop - columns.start]

    def _read(self, group: Group) -> Tensor:
        """The block of one group, `tiles x k x T`, from the files."""
        shape = (group.num_tiles, self._k, group.tile)
        block = torch.zeros(shape, dtype=group.dtype, device=self._device)
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


class StreamingAverage(Average):
    """Members stay on the disk; the average is written into the model's own tensors.

    Needs k tiles of memory (some megabytes) and reads the members of non-zero weight
    once per call.

    Args:
        pool: k members.
        model: On any device; sums are made on the CPU.
    """

    def __init__(self, pool: Members, model: nn.Module) -> None:
        super().__init__(pool, model, TILE, CPU)
        self._scratch = {
            g.dtype: torch.zeros(self._k, g.tile, dtype=g.dtype) for g in self._layout.groups
        }

    def _mix_into_model(self, weights: Mixture) -> None:
        with torch.no_grad():
            for group, tile, total in self._tiles(weights):
                for piece in group.pieces(tile):
                    for target in self.targets[piece.name]:
                        write(target, piece.tensor, total[piece.tile])

    def _rows(self, group: Group, tile: int, mix: Mix) -> Tensor:
        columns = group.columns(tile)
        rows = self._scratch[group.dtype][:, : columns.stop - columns.start]
        for i in mix.members():
            for piece in group.pieces(tile):
                source = self.pool.load_tensor(i, piece.name).view(-1)
                rows[i, piece.tile].copy_(source[piece.tensor])
        return rows


def plan(
    pool: Members,
    model: nn.Module,
    *,
    device: str | torch.device = CPU,
    limit: int | None = None,
) -> Average:
    """The resident form if all members fit in memory, otherwise the streaming form.

    Args:
        pool: k members.
        model: Moved to `device`.
        device: Where the model is evaluated.
        limit: Bytes that may be used; by default four fifths of what is available.
    """
    device = torch.device(device)
    needed = required_bytes(pool)
    allowed = available_bytes(device) * 4 // 5 if limit is None else limit
    if needed <= allowed:
        return ResidentAverage(pool, model, device=device)
    logger.warning(
        "%d members need %.1f GB of memory and %.1f GB may be used: they are read from the "
        "disk for each evaluation.",
        len(pool.members),
        needed / 1e9,
        allowed / 1e9,
    )
    model.to(device)
    return StreamingAverage(pool, model)
