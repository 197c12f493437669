"""What the resident and the streaming form of averaging share; see `average`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.binding import Binding, check_length, same_bits
from fusetune.members.dispatched import offloaded
from fusetune.members.gradient import part_of_gradient
from fusetune.members.kernel import Kernel
from fusetune.members.layout import Group, lay_out
from fusetune.members.member import Members
from fusetune.members.mixing import Mixing, Owners, scale_of
from fusetune.members.points import Blend, Mixture, OwnModel, Point
from fusetune.members.weights import FusionWeights

COUNTER = "num_batches_tracked"
"""A batch normalisation's count of updates, no parameter; the last member's is kept."""


class Average(ABC):
    """θ̄(w) for one pool and one model.

    Args:
        pool: k members.
        model: The model that `into_model` fills; its class and shapes are the members'.
        tile: T, see `layout`.
        device: Where tiles are averaged.

    Attributes:
        binding: Where each tensor of the members goes in the model; None without a model.

    Raises:
        MemberError: If model and members do not fit, or members differ in a tensor that
            cannot be averaged (integers, booleans).
    """

    takes_quantised = False  # whether the model's layers may be quantised

    def __init__(
        self, pool: Members, model: nn.Module | None, tile: int, device: torch.device
    ) -> None:
        self.pool = pool
        self._model = model
        self._device = device
        self._k = len(pool.members)
        tensors = pool.tensors
        own_names = getattr(pool, "adapters", None) is not None
        self.binding = (
            None if model is None else Binding(model, tensors, self.takes_quantised, own_names)
        )
        self._layout = lay_out(tensors, tile, self._constants(pool.constant))
        self._scale: float | None = None  # that the constant tensors have in the model
        self._kernels = [
            Kernel(self._k, g.dtype, g.accumulator, g.tile, device) for g in self._layout.groups
        ]
        self._owners = Owners(pool)
        self._check_fixed()
        self._check_tied()

    def into_model(self, point: Point) -> None:
        """Make the model θ̄(w), or take over the tensors of a model of its own, in place.

        Members in 16 bits are summed in float32 and the sum is rounded to 16 bits; the
        model holds that value in its own dtype. Integer and non-persistent buffers are
        not touched.

        Raises:
            ValueError: If there is not one coefficient per member, or a model of its own
                has not the members' tensors.
        """
        if isinstance(point, OwnModel):
            self._take_over(point)
            self._scale = None
        else:
            check_length(point, self._k)
            self._bound.begin()
            self._write_constants(scale_of(point))
            self._mix_into_model(point)

    @property
    def targets(self) -> Mapping[str, tuple[Tensor, ...]]:
        """Name in the members' files → the model's tensors that take its value as it is."""
        return {} if self.binding is None else self.binding.targets

    @property
    def _bound(self) -> Binding:
        if self.binding is None:
            raise ValueError("This average was made without a model, for writing files only.")
        return self.binding

    @property
    def linear(self) -> bool:
        """Whether the model is linear in w, so that `gradient_products` is its gradient."""
        return True

    @property
    def model(self) -> nn.Module:
        """The model that `into_model` fills.

        Raises:
            ValueError: If there is none.
        """
        if self._model is None:
            raise ValueError("This average was made without a model, for writing files only.")
        return self._model

    @property
    def filled(self) -> nn.Module | None:
        """The same, or None."""
        return self._model

    @abstractmethod
    def _mix_into_model(self, point: Blend) -> None:
        """Make the model Σ w_i θ_i, in place."""

    @abstractmethod
    def _rows(self, group: Group, tile: int, mixing: Mixing) -> Tensor:
        """One tile of all members, `k x n`; what `mixing` does not use may be anything."""

    def bytes_read(self, point: Point) -> int:
        """Bytes that making the point's model reads: of members whose weight is not zero."""
        if isinstance(point, OwnModel):
            return sum(tensor.nbytes for tensor in point.tensors.values())
        groups = self._layout.groups
        return sum(g.dtype.itemsize * self._mixing(point, g).elements for g in groups)

    def mixture(self, point: Blend, name: str) -> Mixture:
        """The coefficients that one tensor is averaged with."""
        return self._owners.mixture(point, name)

    def tensors(self, point: Point) -> dict[str, Tensor]:
        """The point's model as new tensors on the CPU, in the names and dtypes of the files.

        The model is not touched.
        """
        result = {
            name: torch.empty(info.shape, dtype=info.dtype)
            for name, info in self.pool.tensors.items()
        }
        for name, part, values in self.parts(point):
            result[name].view(-1)[part].copy_(values)
        return result

    def parts(self, point: Point) -> Iterator[tuple[str, slice, Tensor]]:
        """Name, elements of the flattened tensor, and their values, until all are told.

        Values are flat, valid until the next part, and not yet in the file's dtype.
        """
        for name in self._layout.fixed:
            yield _whole(name, self.pool.load_tensor(self._k - 1, name))
        if isinstance(point, OwnModel):
            self._check_names(point)
            for name, tensor in point.tensors.items():
                yield _whole(name, tensor)
            return
        check_length(point, self._k)
        for name in self._layout.constant:
            yield _whole(name, self._constant(name, scale_of(point)))
        yield from self._mixed_parts(point)

    def _mixed_parts(self, point: Blend) -> Iterator[tuple[str, slice, Tensor]]:
        """`parts` of what is averaged."""
        for group, tile, total in self._tiles(point):
            for piece in group.pieces(tile):
                yield piece.name, piece.tensor, total[piece.tile]

    def gradient_products(self) -> NDArray[np.float64]:
        """<∂L/∂θ̄, θ_i> of every member, after a backward pass: ∂L/∂w, `k`.

        θ̄ is linear in w, so these k numbers are the whole gradient. Products are made in
        float32 (float64 for float64 members) by pieces of tensors and added in float64.
        Tensors without a gradient (frozen, unused, buffers) count zero;
        rounding to 16 bits counts as the identity. One pass over the members, like an
        average, and no memory besides the model's gradient.

        Raises:
            MemberError: If layers of the model are kept in the host's memory.
        """
        if self._model is not None and offloaded(self._model):
            raise MemberError(
                "Layers of the model are in the host's memory and computed elsewhere: there "
                "are no gradients of them.",
                "Leave out fuse.methods that descend, or take devices that hold the model.",
            )
        products = (self._constant_products() + self._converted_products()).to(self._device)
        everyone = FusionWeights.uniform(self._k)
        for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
            mixing = self._mixing(everyone, group)
            for tile in range(group.num_tiles):
                rows: Tensor | None = None
                for piece in group.pieces(tile):
                    gradient = part_of_gradient(self.targets[piece.name], piece.tensor)
                    if gradient is None:
                        continue
                    rows = self._rows(group, tile, mixing) if rows is None else rows
                    products += kernel.products(rows[:, piece.tile], gradient)
        return products.cpu().numpy()

    def _constant_products(self) -> Tensor:
        """The share of the constant tensors in the products, `k`, the same for every member."""
        products = torch.zeros(self._k, dtype=torch.float64)
        for name in self._layout.constant:
            gradient = part_of_gradient(self.targets[name], slice(None))
            if gradient is not None:
                value = self.pool.load_tensor(0, name).reshape(-1).to(gradient)
                products += torch.dot(gradient, value).cpu()
        return products

    def _converted_products(self) -> Tensor:
        """The share of the tensors that are converted on loading, `k`.

        The conversion is linear: the product with the gradient is the same in the layout of the
        model, where the gradient is.
        """
        products = torch.zeros(self._k, dtype=torch.float64)
        for conversion, places in self._bound.converted.items():
            gradients = {
                name: gradient
                for name, targets in places.items()
                if (gradient := part_of_gradient(targets, slice(None))) is not None
            }
            for i in range(self._k if gradients else 0):
                tensors = {n: self.pool.load_tensor(i, n) for n in conversion.sources}
                converted = conversion(tensors)
                for name, gradient in gradients.items():
                    value = converted[name].reshape(-1).to(gradient)
                    products[i] += torch.dot(gradient, value).cpu()
        return products

    def _constants(self, constant: Collection[str]) -> set[str]:
        """The tensors that are kept once: those of one conversion all together, or none."""
        kept = set(constant)
        for conversion in self.binding.converted if self.binding else ():
            if not kept.issuperset(conversion.sources):
                kept.difference_update(conversion.sources)
        return kept

    def member_tiles(self) -> Iterator[Tensor]:
        """All members side by side, tile after tile: `k x n` each, as stored.

        A tile is valid until the next one. Gaps between tensors are zero.
        """
        for name in self._layout.constant:
            yield self.pool.load_tensor(0, name).view(1, -1).expand(self._k, -1)
        everyone = FusionWeights.uniform(self._k)
        for group in self._layout.groups:
            mixing = self._mixing(everyone, group)
            for tile in range(group.num_tiles):
                yield self._rows(group, tile, mixing)

    def _write_constants(self, scale: float) -> None:
        """Give the constant tensors their value, unless the model has it."""
        if self._scale == scale:
            return
        with torch.no_grad():
            for name in self._layout.constant:
                self._bound.put(name, self._constant(name, scale))
        self._scale = scale

    def _constant(self, name: str, scale: float) -> Tensor:
        tensor = self.pool.load_tensor(0, name)
        if scale == 1.0:
            return tensor
        wide = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        return (scale * wide).to(tensor.dtype)

    def _take_over(self, own: OwnModel) -> None:
        self._check_names(own)
        self._bound.begin()
        with torch.no_grad():
            for name, tensor in own.tensors.items():
                self._bound.put(name, tensor)

    def _check_names(self, own: OwnModel) -> None:
        expected = {
            name: info.shape
            for name, info in self.pool.tensors.items()
            if info.dtype.is_floating_point
        }
        given = {name: tuple(tensor.shape) for name, tensor in own.tensors.items()}
        if given != expected:
            different = sorted(n for n, _ in given.items() ^ expected.items())
            raise ValueError(
                f"A model of its own needs the members' tensors; {different[0]} differs."
            )

    def _tiles(self, point: Blend) -> Iterator[tuple[Group, int, Tensor]]:
        """Group, tile number and average of each tile, in a buffer that is used again."""
        for group, kernel in zip(self._layout.groups, self._kernels, strict=True):
            mixing = self._mixing(point, group)
            buffer = torch.empty(group.tile, dtype=group.accumulator, device=self._device)
            for tile, rows in enumerate(self._all_rows(group, mixing)):
                total = buffer[: rows.shape[1]]
                with torch.no_grad():
                    mixing(kernel, rows, tile, total)
                yield group, tile, total

    def _all_rows(self, group: Group, mixing: Mixing) -> Iterator[Tensor]:
        """`_rows` of every tile in order; each is valid until the next."""
        return (self._rows(group, tile, mixing) for tile in range(group.num_tiles))

    def _mixing(self, point: Blend, group: Group) -> Mixing:
        return Mixing(point, group, self._device, self._owners.of(point))

    def _check_fixed(self) -> None:
        for name in self._layout.fixed:
            values = [self.pool.load_tensor(i, name) for i in range(self._k)]
            counter = name.endswith(COUNTER)
            if not counter and not same_bits(values):
                raise MemberError(
                    f"{name} is {values[0].dtype} and differs between the members; "
                    "only floating-point tensors can be averaged.",
                    hint="Fuse checkpoints of one run, of which this tensor is a constant.",
                )
            if self.binding is not None:
                with torch.no_grad():
                    self.binding.put(name, values[-1])

    def _check_tied(self) -> None:
        for names in self.binding.tied if self.binding else ():
            for i, member in enumerate(self.pool.members):
                if not same_bits(self.pool.load_tensor(i, name) for name in names):
                    raise MemberError(
                        f"{' and '.join(names)} are one tensor in the model, "
                        f"but differ in {member.path}.",
                        hint="Load the model with the configuration of the members "
                        "(tie_word_embeddings).",
                    )


def _whole(name: str, tensor: Tensor) -> tuple[str, slice, Tensor]:
    return name, slice(0, tensor.numel()), tensor.reshape(-1)
