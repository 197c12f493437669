"""Adapters as if they were whole models: the merged tensors of each, made when asked for.

In the layout of the stored weight (`in x out` for embeddings and GPT-2's Conv1D, else
`out x in`) every adapted weight of member i is

    θ_i = c_i ∘ (W + L_i R_i)

with L_i R_i = s_i B_i A_i, or its transpose, and c_i = 1. With DoRA,
c_i = m_i / ‖W + s_i B_i A_i‖ row by row (of the `out x in` form): fixed numbers once the member
is trained, so that sums of merged DoRA weights are as cheap as those of LoRA. A module that
one member adapts and another does not has ΔW = 0 there: its weight is W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_compare import check_base
from fusetune.members.base import Base
from fusetune.members.files import FileSource
from fusetune.members.header import TensorSpec


@dataclass(frozen=True, slots=True)
class Low:
    """The low-rank change of one weight by one member, in the layout of the weight.

    Attributes:
        left: `rows x r`, s included where the weight is `out x in`.
        right: `r x columns`, s included where it is not.
        scale: c_i as a vector over the outputs; None for plain LoRA.
    """

    left: Tensor
    right: Tensor
    scale: Tensor | None


class AdapterSource:
    """Merged tensors of adapters on one base.

    Args:
        members: Compatible with one another.
        base: Loaded when the first tensor is asked for.
    """

    def __init__(self, members: Sequence[AdapterMember], base: Base) -> None:
        self.members = tuple(members)
        self.base = base
        self.files = FileSource(self.members)
        self._scales: dict[tuple[int, str], Tensor] = {}

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Those of the base model.

        Raises:
            MemberError: If the base model is not of the adapters' shapes.
        """
        specs = self.base.specs
        check_base(self.members, self.base, specs)
        return specs

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """That of the base model, with its head."""
        return self.base.config

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """Name of each adapted weight → the module."""
        modules = sorted({name for member in self.members for name in member.modules})
        return {f"{module}.weight": module for module in modules}

    @cached_property
    def biases(self) -> Mapping[str, str]:
        """Name of each bias that LoRA adds to → the module."""
        pairs = ((n, m) for member in self.members for n, m in member.modules.items())
        return {f"{name}.bias": name for name, module in pairs if module.bias}

    @property
    def whole(self) -> tuple[str, ...]:
        """Names of tensors that every member brings itself."""
        return tuple(sorted(self.members[0].whole))

    @cached_property
    def constant(self) -> frozenset[str]:
        """What no member changes."""
        changed = {*self.weights, *self.biases, *self.whole}
        return frozenset(
            name
            for name, spec in self.tensors.items()
            if spec.dtype.is_floating_point and spec.numel and name not in changed
        )

    def load_tensor(self, index: int, name: str) -> Tensor:
        """The merged tensor of member `index`, in the base's dtype."""
        spec = self.tensors[name]
        if name not in self.weights:
            return self.exact_tensor(index, name).to(spec.dtype)
        return self._rows(index, name, 0, spec.shape[0]).to(spec.dtype)

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Elements of the merged tensor; only their rows are made."""
        if name not in self.weights:
            out.copy_(self.exact_tensor(index, name).reshape(-1)[part])
            return
        columns = self.tensors[name].shape[1]
        first, last = part.start // columns, -(-part.stop // columns)
        rows = self._rows(index, name, first, last).reshape(-1)
        skipped = first * columns
        out.copy_(rows[part.start - skipped : part.stop - skipped])

    def low(self, index: int, module: str) -> Low | None:
        """What member `index` lays on a module's weight; None if nothing."""
        adapted = self.members[index].modules.get(module)
        if adapted is None:
            return None
        wide = self.accumulator(f"{module}.weight")
        a = self.files.read(index, adapted.a).to(wide)
        b = self.files.read(index, adapted.b).to(wide) * adapted.scaling
        flipped = self.base.transposed(module)
        left, right = (a.t(), b.t()) if flipped else (b, a)
        scale = self._scale(index, module, left, right) if adapted.magnitude else None
        return Low(left, right, scale)

    def bias(self, index: int, module: str) -> Tensor | None:
        """S b of a module's bias, which LoRA may have; None if it has none."""
        adapted = self.members[index].modules.get(module)
        if adapted is None or adapted.bias is None:
            return None
        wide = self.accumulator(f"{module}.bias")
        return self.files.read(index, adapted.bias).to(wide) * adapted.scaling

    def exact_tensor(self, index: int, name: str) -> Tensor:
        """A tensor that is no adapted weight, not yet rounded to the base's dtype."""
        member = self.members[index]
        if name in member.whole:
            return self.files.read(index, member.whole[name])
        tensor = self.base.tensors[name]
        added = self.bias(index, self.biases[name]) if name in self.biases else None
        return tensor if added is None else tensor.to(added.dtype) + added

    def accumulator(self, name: str) -> torch.dtype:
        """The dtype of sums: float64 for float64, otherwise float32."""
        wide = self.tensors[name].dtype == torch.float64
        return torch.float64 if wide else torch.float32

    def along(self, name: str) -> int:
        """The dimension of a stored weight that counts outputs."""
        return 1 if self.base.transposed(self.weights[name]) else 0

    def _rows(self, index: int, name: str, first: int, last: int) -> Tensor:
        """Rows of the merged weight, in the dtype of sums."""
        module = self.weights[name]
        base = self.base.tensors[name][first:last].to(self.accumulator(name))
        low = self.low(index, module)
        if low is None:
            return base
        merged = torch.addmm(base, low.left[first:last], low.right)
        if low.scale is None:
            return merged
        flipped = self.along(name) == 1
        return merged * (low.scale[None, :] if flipped else low.scale[first:last, None])

    def _scale(self, index: int, module: str, left: Tensor, right: Tensor) -> Tensor:
        """C of DoRA: the trained length of each output's row over the length it has."""
        if (index, module) not in self._scales:
            name = f"{module}.weight"
            merged = torch.addmm(self.base.tensors[name].to(left.dtype), left, right)
            lengths = torch.linalg.vector_norm(merged, dim=1 - self.along(name))
            magnitude = self.members[index].modules[module].magnitude
            assert magnitude is not None
            trained = self.files.read(index, magnitude).to(left.dtype).reshape(-1)
            self._scales[index, module] = trained / lengths
        return self._scales[index, module]
