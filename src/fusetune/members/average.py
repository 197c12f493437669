"""θ̄(w) = Σ w_i θ_i, into a model or as a state dict.

Two forms with one interface and one kernel. `ResidentAverage` holds all members in memory
and the model's parameters are views on one flat buffer, so that a new w costs one pass over
the members at memory speed. `StreamingAverage` reads the members' files each time and needs
almost no memory. Both give the same bits on a CPU.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.binding import bind, check_length, same_bits, tied_names, write
from fusetune.members.gradient import part_of_gradient
from fusetune.members.kernel import Kernel, Mix
from fusetune.members.layout import TILE, Group, lay_out
from fusetune.members.member import Members
from fusetune.members.memory import available_bytes, required_bytes
from fusetune.members.weights import FusionWeights

logger = logging.getLogger(__name__)

DEVICE_TILE = 1 << 20  # columns; on an accelerator, fewer and larger calls
CPU = torch.device("cpu")


class Average(ABC):
    """θ̄(w) for one pool and one model.

    Args:
        pool: k members.
        model: The model that `into_model` fills; its class and shapes are the members'.
        tile: T, see `layout`.
        device: Where tiles are averaged.

    Raises:
        MemberError: If model and members do not fit, or members differ in a tensor that
            cannot be averaged (integers, booleans).
    """

    def __init__(
        self, pool: Members, model: nn.Module, tile: int, device: torch.device
    ) -> None:
        self.pool = pool
        self.model = model
        self._device = device
        self._k = len(pool.members)
        tensors = pool.members[0].tensors
        self._targets = bind(model, tensors)
        self._layout = lay_out(tensors, tile)
        self._kernels = [
            Kernel(self._k, g.dtype, g.accumulator, g.tile, device) for g in self._layout.groups
        ]
        self._check_fixed()
        self._check_tied()

    @abstractmethod
    def into_model(self, weights: FusionWeights) -> None:
        """Make the model θ̄(w), in place.

        Members in 16 bits are summed in float32 and the sum is rounded to 16 bits; the
        model holds that value in its own dtype. Integer and non-persistent buffers are
        not touched.

        Raises:
            ValueError: If there is not one weight per member.
        """

    @abstractmethod
    def _rows(self, group: Group, tile: int, mix: Mix) -> Tensor:
        """One tile of all members, `k x n`; rows that `mix` does not use may be anything."""

    def tensors(self, weights: FusionWeights) -> dict[str, Tensor]:
        """θ̄(w) as new tensors on the CPU, under the names and in the dtypes of the files.

        The model is not touched.
        """
        check_length(weights, self._k)
        result = {
            name: torch.empty(info.shape, dtype=info.dtype)
            for name, info in self.pool.members[0].tensors.items()
        }
        for name in self._layout.fixed:
            result[name].copy_(self.pool.load_tensor(0, name))
        with torch.no_grad():
            for group, tile, total in self._tiles(weights):
                for piece in group.pieces(tile):
                    result[piece.name].view(-1)[piece.tensor].copy_(total[piece.tile])
        return result

    def gradient_products(self) -> NDArray[np.float64]:
        """<∂L/∂θ̄, θ_i> of every member, after a backward pass: ∂L/∂w, `k`.

        θ̄ is linear in w, so these k numbers are the whole gradient. Products are made in
        float32 (float64 for float64 members) by pieces of tensors and added in float64.
        Tensors without a gradient (frozen, unused, buffers) count zero;
        rounding to 16 bits counts as the identity. One pass over the members, like an
        average, and no memory besides the model's gradient.
        """
        products = torch.zeros(self._k, dtype=torch.float64, device=self._device)
        everyone = FusionWeights.uniform(self._k)
        for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
            mix = Mix.of(everyone, group.accumulator, self._device)
            for tile in range(group.num_tiles):
                rows: Tensor | None = None
                for piece in group.pieces(tile):
                    gradient = part_of_gradient(self._targets[piece.name], piece.tensor)
                    if gradient is None:
                        continue
                    rows = self._rows(group, tile, mix) if rows is None else rows
                    products += kernel.products(rows[:, piece.tile], gradient)
        return products.cpu().numpy()

    def _tiles(self, weights: FusionWeights) -> Iterator[tuple[Group, int, Tensor]]:
        """Group, tile number and average of each tile, in a buffer that is used again."""
        for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
            mix = Mix.of(weights, group.accumulator, self._device)
            buffer = torch.empty(group.tile, dtype=group.accumulator, device=self._device)
            for tile in range(group.num_tiles):
                rows = self._rows(group, tile, mix)
                total = buffer[: rows.shape[1]]
                kernel(rows, mix, total)
                yield group, tile, total

    def _check_fixed(self) -> None:
        for name in self._layout.fixed:
            values = [self.pool.load_tensor(i, name) for i in range(self._k)]
            if not same_bits(values):
                raise MemberError(
                    f"{name} is {values[0].dtype} and differs between the members; "
                    "only floating-point tensors can be averaged.",
                    hint="Fuse checkpoints of one run, of which this tensor is a constant.",
                )
            with torch.no_grad():
                for target in self._targets[name]:
                    target.copy_(values[0])

    def _check_tied(self) -> None:
        for names in tied_names(self.model, self.pool.members[0].tensors):
            for i, member in enumerate(self.pool.members):
                if not same_bits(self.pool.load_tensor(i, name) for name in names):
                    raise MemberError(
                        f"{' and '.join(names)} are one tensor in the model, "
                        f"but differ in {member.path}.",
                        hint="Load the model with the configuration of the members "
                        "(tie_word_embeddings).",
                    )


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
                for target in self._targets[slot.name]:
                    shares = target.dtype == flat.dtype
                    (self._views if shares else self._copies).append((target, part))
        for target, part in self._views:
            part.copy_(target.detach())
        self._share()

    def into_model(self, weights: FusionWeights) -> None:
        """Make the model θ̄(w), in place; see `Average.into_model`."""
        check_length(weights, self._k)
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

    def into_model(self, weights: FusionWeights) -> None:
        """Make the model θ̄(w), in place; see `Average.into_model`."""
        check_length(weights, self._k)
        with torch.no_grad():
            for group, tile, total in self._tiles(weights):
                for piece in group.pieces(tile):
                    for target in self._targets[piece.name]:
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
