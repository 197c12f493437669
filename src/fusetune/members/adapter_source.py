"""Adapters as if they were whole models: the merged tensors of each, made when asked for.

In the layout of the stored weight (`in x out` for embeddings and GPT-2's Conv1D, else
`out x in`) every adapted weight of member i is

    θ_i = c_i ∘ (W + L_i R_i)

with L_i R_i = s_i B_i A_i, or its transpose, and c_i = 1. With DoRA,
c_i = m_i / ‖W + s_i B_i A_i‖ row by row (of the `out x in` form): fixed numbers once the member
is trained, so that sums of merged DoRA weights are as cheap as those of LoRA. A module that
one member adapts and another does not has ΔW = 0 there: its weight is W. A parameter of experts
is one such weight for each expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_bind import bind_adapters, tensor_names, weight_of
from fusetune.members.base import Base
from fusetune.members.files import FileSource
from fusetune.members.header import TensorSpec


@dataclass(frozen=True, slots=True)
class Low:
    """The low-rank change of one weight by one member, in the layout of the weight.

    Attributes:
        left: `rows x r`, s included where the weight is `out x in`; of experts, with one
            more dimension in front.
        right: `r x columns`, s included where it is not; likewise.
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
        self.given = tuple(members)
        self.base = base
        self.files = FileSource(self.given)
        self._scales: dict[tuple[int, str], Tensor] = {}

    @cached_property
    def members(self) -> tuple[AdapterMember, ...]:
        """The adapters as changes of the base model's tensors; it is loaded for that.

        Raises:
            MemberError: If they do not fit the base model.
        """
        return bind_adapters(self.given, self.base)

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Those of the base model.

        Raises:
            MemberError: If the adapters do not fit the base model.
        """
        _ = self.members
        return self.base.specs

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """That of the base model, with its head."""
        return self.base.config

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """Name of each adapted weight → the module."""
        return tensor_names(self.members)

    @cached_property
    def biases(self) -> Mapping[str, str]:
        """Name of each bias that LoRA adds to → the module."""
        pairs = ((n, m) for member in self.members for n, m in member.modules.items())
        return {f"{name}.bias": name for name, module in pairs if module.bias}

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """Names of tensors that members bring themselves, all of them or single rows."""
        return tuple(sorted({n for m in self.members for n in (*m.whole, *m.rows)}))

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
        rows = math.prod(spec.shape[:-1])
        return self._rows(index, name, 0, rows).view(spec.shape).to(spec.dtype)

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Elements of the merged tensor; only their rows are made."""
        if name not in self.weights:
            out.copy_(self.exact_tensor(index, name).reshape(-1)[part])
            return
        columns = self.tensors[name].shape[-1]
        first, last = part.start // columns, -(-part.stop // columns)
        rows = self._rows(index, name, first, last).reshape(-1)
        skipped = first * columns
        out.copy_(rows[part.start - skipped : part.stop - skipped])

    def low(self, index: int, module: str) -> Low | None:
        """What member `index` lays on a module's weight; None if nothing."""
        adapted = self.members[index].modules.get(module)
        if adapted is None:
            return None
        wide = self.accumulator(weight_of(module, adapted))
        a = self.files.read(index, adapted.a).to(wide)
        b = self.files.read(index, adapted.b).to(wide) * adapted.scaling
        if adapted.experts is not None:  # PEFT keeps the factors of all experts in two matrices
            a = a.view(adapted.experts, adapted.rank, -1)
            b = b.view(-1, adapted.rank, adapted.experts).permute(2, 0, 1)
        left, right = (a.mT, b.mT) if self.base.flipped(module, adapted) else (b, a)
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
        if name in member.rows:
            key, rows = member.rows[name]
            wide = tensor.to(self.accumulator(name))
            values = self.files.read(index, key).to(wide)
            return wide.index_copy(0, torch.tensor(rows), values)
        added = self.bias(index, self.biases[name]) if name in self.biases else None
        return tensor if added is None else tensor.to(added.dtype) + added

    def accumulator(self, name: str) -> torch.dtype:
        """The dtype of sums: float64 for float64, otherwise float32."""
        wide = self.tensors[name].dtype == torch.float64
        return torch.float64 if wide else torch.float32

    def along(self, name: str) -> int:
        """The dimension of a stored weight that counts outputs; experts are not counted."""
        module = self.weights[name]
        adapted = next(m.modules[module] for m in self.members if module in m.modules)
        return 1 if self.base.flipped(module, adapted) else 0

    def _rows(self, index: int, name: str, first: int, last: int) -> Tensor:
        """Rows of the merged weight, in the dtype of sums; those of experts are counted on."""
        module, (*experts, height, columns) = self.weights[name], self.tensors[name].shape
        low = self.low(index, module)
        if experts and low is not None:
            a, b = first // height, -(-last // height)
            base = self.base.tensors[name][a:b].to(self.accumulator(name))
            merged = torch.baddbmm(base, low.left[a:b], low.right[a:b]).view(-1, columns)
            return merged[first - a * height : last - a * height]
        base = self.base.tensors[name].view(-1, columns)[first:last]
        base = base.to(self.accumulator(name))
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
