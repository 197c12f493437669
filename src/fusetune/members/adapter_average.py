"""θ̄(w) of adapters: W + Σ w_i s_i B_i A_i, written into the one model that there is.

The factors of all members stand side by side, L (`rows x Σr`) and R (`Σr x columns`): an
average is one matrix product per adapted weight. Memory is the base, the factors, and a copy
of the adapted weights W, which the model's own then no longer are; nothing is copied per w.

Averaging A and B apart, W + s (Σ w_i B_i) (Σ w_i A_i), is what some papers do. It is not the
average of the models, by terms w_i w_j B_i A_j of members that never met in training; here it
is there to be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.adapter_source import AdapterSource
from fusetune.members.adapter_stack import Stack
from fusetune.members.dispatched import is_dispatched
from fusetune.members.gradient import part_of_gradient
from fusetune.members.mixing import scale_of
from fusetune.members.points import Blend, OwnModel, Point
from fusetune.members.pool import MemberPool
from fusetune.members.streaming import StreamingAverage

CPU = torch.device("cpu")
WHOLE = slice(None)


class AdapterAverage(StreamingAverage):
    """Averages of the adapters of one base, resident on it.

    The average of the merged models, exactly: to rounding, for any rank, alpha, rsLoRA,
    DoRA, and whole tensors (modules_to_save, biases), which are averaged as they are.

    Args:
        pool: Adapters.
        model: What `into_model` fills; usually `pool.base.model`. None to write files only.
        device: Where the model is evaluated; factors and adapted weights are kept there, or
            in the host's memory if the model lies on several devices.
        apart: Average A and B apart instead.

    Raises:
        MemberError: If adapters that are to be averaged apart differ in rank or targets, or
            use DoRA.
        ValueError: If the pool is not of adapters.
    """

    def __init__(
        self,
        pool: MemberPool,
        model: nn.Module | None,
        *,
        device: str | torch.device = CPU,
        apart: bool = False,
    ) -> None:
        source = pool.adapters
        if source is None:
            raise ValueError("AdapterAverage is for a pool of adapters.")
        if apart:
            check_apart(source)
        self.source, self.apart = source, apart
        self._spread = model is not None and is_dispatched(model)
        self._place = CPU if self._spread else torch.device(device)
        _ = source.tensors  # the base's own, before it is moved
        if model is not None:
            source.base.keep({*source.weights, *source.biases, *source.whole})
            self._move(model)
        super().__init__(pool, model)
        self._stacks = {n: Stack.of(source, n, self._place) for n in source.weights}
        self._read = [self._adapter_bytes(i) for i in range(self._k)]

    @property
    def linear(self) -> bool:
        """Whether the model is linear in w; not if A and B are averaged apart."""
        return not self.apart

    @property
    def stacks(self) -> dict[str, Stack]:
        """Name of each adapted weight → its factors."""
        return self._stacks

    def bytes_read(self, point: Point) -> int:
        """Bytes of the adapted base weights and of the factors with a weight."""
        if isinstance(point, OwnModel):
            return super().bytes_read(point)
        base = sum(self.source.tensors[name].nbytes for name in self._stacks)
        return base + sum(
            read
            for i, parts in enumerate(self._read)
            for name, read in parts.items()
            if self.mixture(point, name).values[i] != 0.0
        )

    def gradient_products(self) -> NDArray[np.float64]:
        """<∂L/∂θ̄, θ_i> of every member, `k`, without ever merging one."""
        products = self._constant_products()
        for name, stack in self._stacks.items():
            gradient = part_of_gradient(self.targets[name], WHOLE)
            if gradient is not None:
                shaped = gradient.view(self.source.tensors[name].shape)
                products += stack.products(shaped, self._k).cpu()
        for name in (*self.source.biases, *self.source.whole):
            gradient = part_of_gradient(self.targets[name], WHOLE)
            if gradient is None:
                continue
            for i in range(self._k):
                row = self._wide(i, name).reshape(-1)
                products[i] += float(torch.dot(row, gradient.to(row)))
        return products.numpy()

    def vector(self, point: Blend, name: str) -> Tensor:
        """The coefficients in the dtype of a weight's sums, where its factors are."""
        wide = self.source.accumulator(name)
        values = self.mixture(point, name).values
        return torch.tensor(values, dtype=wide, device=self._place)

    def small(self, point: Blend) -> Iterator[tuple[str, Tensor]]:
        """The averages of biases and of whole tensors, in the dtype of sums."""
        for name in (*self.source.biases, *self.source.whole):
            wide = self.source.accumulator(name)
            total = torch.zeros(self.source.tensors[name].shape, dtype=wide)
            for i, value in enumerate(self.mixture(point, name).values):
                if value != 0.0:  # one after the other: a saved embedding may be large
                    total.add_(self._wide(i, name), alpha=value)
            yield name, total

    def _mix_into_model(self, point: Blend) -> None:
        total = scale_of(point)
        with torch.no_grad():
            for name, stack in self._stacks.items():
                if not self.targets[name]:
                    continue
                vector = self.vector(point, name)
                for target in self.targets[name]:
                    place = None if self._spread else target
                    mixed = stack.mixed(vector, total, self.apart, place)
                    if mixed is not target:
                        target.copy_(mixed.to(self.source.tensors[name].dtype))
            for name, value in self.small(point):
                for target in self.targets[name]:
                    target.copy_(value.to(self.source.tensors[name].dtype))

    def _mixed_parts(self, point: Blend) -> Iterator[tuple[str, slice, Tensor]]:
        total = scale_of(point)
        for name, stack in self._stacks.items():
            with torch.no_grad():
                mixed = stack.mixed(self.vector(point, name), total, self.apart)
            yield name, slice(0, mixed.numel()), mixed.reshape(-1).cpu()
        for name, value in self.small(point):
            yield name, slice(0, value.numel()), value.reshape(-1)

    def _write_constants(self, scale: float) -> None:
        if scale != 1.0 and self._model is not None:  # the base is overwritten: copy it first
            self.source.base.keep(self._layout.constant)
        super()._write_constants(scale)

    def _take_over(self, own: OwnModel) -> None:
        self.source.base.keep(self._layout.constant)
        super()._take_over(own)

    def _move(self, model: nn.Module) -> None:
        """To where it is evaluated."""
        if not self._spread:
            model.to(self._place)

    def _wide(self, index: int, name: str) -> Tensor:
        """A small tensor of one member in the dtype of sums, on the CPU."""
        return self.source.exact_tensor(index, name).to(self.source.accumulator(name))

    def _adapter_bytes(self, index: int) -> dict[str, int]:
        """Name of a tensor → what a member's part in it takes."""
        factors = {
            name: int((stack.owners == index).sum())
            * (stack.left[..., 0].numel() + stack.right[..., 0, :].numel())
            * stack.left.element_size()
            for name, stack in self._stacks.items()
        }
        member = self.source.members[index]
        rows = {n: member.tensors[key].nbytes for n, (key, _) in member.rows.items()}
        whole = {n: member.tensors[key].nbytes for n, key in member.whole.items()}
        return factors | whole | rows


def check_apart(source: AdapterSource) -> None:
    """Raise `MemberError` unless factors can be averaged apart: equal ranks, no DoRA."""
    first = source.members[0]
    for member in source.members:
        ranks = {name: module.rank for name, module in member.modules.items()}
        if member.dora:
            raise MemberError(
                f"{member.path} uses DoRA, whose factors cannot be averaged apart.",
                hint="Write fuse.adapters: exact.",
            )
        if ranks != {name: module.rank for name, module in first.modules.items()}:
            raise MemberError(
                f"{member.path} and {first.path} have other targets or ranks: their factors "
                "cannot be averaged apart.",
                hint="Write fuse.adapters: exact.",
            )
