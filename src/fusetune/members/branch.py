"""What stands beside a quantised layer, so that it computes with θ̄(w) all the same."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fusetune.members.adapter_stack import Stack
from fusetune.models.quantised import transposed

PLACE = "_fusetune_branch"  # of a layer, where its branch is told


class Branch:
    """Makes one quantised layer compute y = c ∘ (W x) + L (a ∘ (R x)) + bias.

    W stays as it is. a has the coefficient of each row's member, so that L and R are the same
    for every w and nothing of their size is made for one. c is Σ a_i, or DoRA's vector over
    the outputs. Where gradients are followed, a and c come from `coefficients`, a leaf: after
    a backward pass its gradient is <∂L/∂θ̄, θ_i> of this weight.

    Args:
        layer: The quantised layer.
        stack: Factors of the members; None if no member adapts the layer.
    """

    def __init__(self, layer: nn.Module, stack: Stack | None) -> None:
        self._layer, self._stack = layer, stack
        self._flipped = transposed(layer)
        self.coefficients: Tensor | None = None
        self._factors: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._stretch: Tensor | float = 1.0
        self._own: Tensor | None = None
        self._handle: Any = None

    def blend(self, vector: Tensor, total: float, apart: bool) -> None:
        """Take other coefficients.

        Args:
            vector: `k`, in the dtype of sums.
            total: Their sum.
            apart: Average A and B apart.
        """
        self._attach()
        self._own = None
        self.coefficients = None if apart else vector.clone().requires_grad_()
        self._factors, self._stretch = None, total
        if self._stack is None:
            return
        stretch = self._stack.stretch(vector, total)
        self._stretch = stretch.reshape(-1) if isinstance(stretch, Tensor) else stretch
        if apart:
            self._factors = (*self._stack.factors(vector, apart=True), None)
            return
        left, right, a = self._stack.left, self._stack.right, vector[self._stack.owners]
        used = a != 0  # members of zero weight are left out
        if not bool(used.all()):
            left, right, a = left[:, used], right[used], a[used]
        self._factors = left, right, a

    def replace(self, weight: Tensor) -> None:
        """Compute with a weight of its own, in W's layout, on the layer's device."""
        self._attach()
        self._own = weight
        self._factors, self.coefficients = None, None

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The hook after the layer's own computation."""
        x, bias = inputs[0], cast(Tensor | None, layer.bias)
        if self._own is not None:
            own = self._own.t() if self._flipped else self._own
            plain = linear(x.to(own.dtype), own, None if bias is None else bias.to(own))
            return plain.to(output.dtype)
        factors, stretch = self._factors, self._stretch
        if torch.is_grad_enabled() and self.coefficients is not None:
            factors, stretch = self._differentiable(self.coefficients)
        elif not isinstance(stretch, Tensor) and stretch == 1.0:
            return output if factors is None else output + self._change(x, factors, output)
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        shift = torch.zeros((), device=wide.device) if bias is None else bias.to(wide)
        wide = (wide - shift) * stretch + shift
        if factors is not None:
            wide = wide + self._change(x, factors, wide)
        return wide.to(output.dtype)

    def _change(
        self, x: Tensor, factors: tuple[Tensor, Tensor, Tensor | None], like: Tensor
    ) -> Tensor:
        left, right, a = factors
        down, up = (left.t(), right.t()) if self._flipped else (right, left)
        inner = linear(x.to(down.dtype), down)
        return linear(inner if a is None else inner * a, up).to(like.dtype)

    def _differentiable(
        self, leaf: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor] | None, Tensor]:
        """Factors of all members and c, as functions of the coefficients."""
        stack = self._stack
        if stack is None:
            return None, leaf.sum()
        stretch = leaf.sum() if stack.scales is None else stack.scales.t() @ leaf
        return (stack.left, stack.right, leaf[stack.owners]), stretch

    def _attach(self) -> None:
        """Be the layer's branch; another average's, which was there before, goes."""
        there = self._layer.__dict__.get(PLACE)
        if there is self:
            return
        if there is not None:
            there.detach()
        self._handle = self._layer.register_forward_hook(self)
        self._layer.__dict__[PLACE] = self

    def detach(self) -> None:
        """Leave the layer as it was."""
        if self._layer.__dict__.get(PLACE) is self:
            del self._layer.__dict__[PLACE]
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
