"""θ̄(w) of adapters on a base whose weights are quantised.

W + Σ w_i s_i B_i A_i cannot be written into W: it would be rounded to W's few levels. The
members stay beside each quantised layer as one pair of factors, in which w scales the rows
(`branch`): exact in w, and the memory is the base, k adapters and nothing per w.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusetune.members.adapter_average import CPU, AdapterAverage
from fusetune.members.branch import Branch
from fusetune.members.mixing import scale_of
from fusetune.members.points import Blend, OwnModel, Point
from fusetune.members.pool import MemberPool
from fusetune.models.quantised import quantised_layers, steady


class QuantisedAverage(AdapterAverage):
    """Averages of adapters on a quantised base, beside its layers.

    What is not quantised (heads, embeddings, norms) is averaged in place, as `AdapterAverage`
    does it. A model of its own is held as a second, plain weight per quantised layer as long
    as it is evaluated.

    Args:
        pool: Adapters.
        model: Their base, as it was loaded.
        device: Where the model is.
        apart: Average A and B apart instead.

    Raises:
        MemberError: As `AdapterAverage`.
        ValueError: If the pool is not of adapters.
    """

    takes_quantised = True

    def __init__(
        self,
        pool: MemberPool,
        model: nn.Module,
        *,
        device: str | torch.device = CPU,
        apart: bool = False,
    ) -> None:
        super().__init__(pool, model, device=device, apart=apart)
        self._branches: Mapping[str, Branch] = {
            f"{name}.weight": Branch(layer, self._stacks.get(f"{name}.weight"))
            for name, layer in quantised_layers(model).items()
        }

    def bytes_read(self, point: Point) -> int:
        """Bytes of the adapted base weights that are not quantised and of factors."""
        if isinstance(point, OwnModel):
            return super().bytes_read(point)
        packed = sum(
            self.source.tensors[name].nbytes for name in self._stacks if name in self._branches
        )
        return super().bytes_read(point) - packed

    def gradient_products(self) -> NDArray[np.float64]:
        """<∂L/∂θ̄, θ_i> of every member, `k`, without ever merging one.

        Of the quantised layers it is the gradient since the last `into_model`, or the last
        call.
        """
        products = super().gradient_products()
        for branch in self._branches.values():
            leaf = branch.coefficients
            if leaf is not None and leaf.grad is not None:
                products += leaf.grad.double().cpu().numpy()
                leaf.grad = None
        return products

    def _mix_into_model(self, point: Blend) -> None:
        super()._mix_into_model(point)
        total = scale_of(point)
        with torch.no_grad():
            for name, branch in self._branches.items():
                branch.blend(self.vector(point, name), total, self.apart)

    def _take_over(self, own: OwnModel) -> None:
        super()._take_over(own)
        for name, branch in self._branches.items():
            branch.replace(own.tensors[name].to(self._place))

    def _move(self, model: nn.Module) -> None:
        """Layers are quantised where they are, and stay there if that is the right place."""
        steady(model)
        here = next(model.parameters()).device
        if here.type != self._place.type:
            super()._move(model)
