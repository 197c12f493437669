"""What can become one model: w on the simplex, one w per group of layers, any real
coefficients, or tensors of its own.

Most methods choose w on the simplex. Some leave it: they choose a w for each group of layers
(`layers.LayerWeights`), train coefficients of any sign, or make a model that is no combination
of the members at all. Everything that averages, evaluates or exports takes any of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.disk import replaced_file
from fusetune.members.layers import LayerWeights, group_names
from fusetune.members.weights import FusionWeights

DIGEST = "digest"  # key in the metadata of a model's file


@dataclass(frozen=True, slots=True)
class Combination:
    """Σ a_i θ_i with real coefficients, which may be negative and need not sum to 1.

    Attributes:
        values: k floats, in the order of the members.

    Raises:
        ValueError: If there is none, or one is not finite.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(v) for v in self.values):
            raise ValueError(f"Coefficients must be finite numbers; got {self.values}.")

    def __len__(self) -> int:
        return len(self.values)


class OwnModel:
    """A model that is no combination of the members: tensors under their names.

    Two are equal if their tensors have the same bits.

    Args:
        tensors: Floating-point tensors of the members' names, shapes and dtypes, on the CPU.
        digest: sha256 of names, dtypes, shapes and values.
    """

    def __init__(self, tensors: Mapping[str, Tensor], digest: str) -> None:
        self.tensors = tensors
        self.digest = digest

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> OwnModel:
        """Of tensors in memory, which must not change afterwards."""
        kept = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
        return cls(kept, _digest(kept))

    @classmethod
    def open(cls, file: Path) -> OwnModel:
        """Of a file that `save` wrote; its tensors are memory-mapped.

        Raises:
            MemberError: If the file is missing, damaged, or of another make.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                digest = (opened.metadata() or {})[DIGEST]
                tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
        except (OSError, SafetensorError, KeyError) as error:
            raise MemberError(
                f"{file}, the model of a method, cannot be read: {error}.",
                "Run `fusetune fuse --force` to make it again.",
            ) from error
        return cls(tensors, digest)

    def save(self, file: Path) -> None:
        """Write the tensors as safetensors: all of the file, or nothing."""
        with replaced_file(file) as temporary:
            save_file(dict(self.tensors), temporary, metadata={DIGEST: self.digest})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnModel) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"OwnModel({len(self.tensors)} tensors, {self.digest[:12]})"


Mixture = FusionWeights | Combination
"""What has one coefficient per member."""

Blend = FusionWeights | Combination | LayerWeights
"""What has one coefficient per member for every tensor."""

Point = FusionWeights | Combination | LayerWeights | OwnModel
"""What can become one model."""


def key(point: Point) -> bytes:
    """Bytes that are the same for two points only if their models are."""
    if isinstance(point, OwnModel):
        return point.digest.encode()
    if isinstance(point, LayerWeights):
        if point.one is not None:
            return key(point.one)
        rows = [w.values for w in point.groups]
        return b"layers" + np.asarray(rows, dtype=np.float64).tobytes()
    return np.asarray(point.values, dtype=np.float64).tobytes()


def to_json(point: Point) -> dict[str, Any]:
    """Plain data; of a model of its own, the digest alone."""
    if isinstance(point, OwnModel):
        return {"model": point.digest}
    if isinstance(point, LayerWeights):
        pairs = zip(group_names(point.parts), point.groups, strict=True)
        return {"layers": [{"group": name, "weights": list(w.values)} for name, w in pairs]}
    name = "weights" if isinstance(point, FusionWeights) else "coefficients"
    return {name: list(point.values)}


def from_json(data: Mapping[str, Any], folder: Path | None = None) -> Point:
    """The inverse of `to_json`.

    Args:
        data: What `to_json` gave.
        folder: Where models of their own are kept, each as DIGEST.safetensors.

    Raises:
        MemberError: If such a model is not there.
    """
    if "weights" in data:
        return FusionWeights(tuple(data["weights"]))
    if "coefficients" in data:
        return Combination(tuple(data["coefficients"]))
    if "layers" in data:
        return LayerWeights(tuple(FusionWeights(tuple(g["weights"])) for g in data["layers"]))
    if folder is None:
        raise ValueError("A model of its own needs the folder that it was saved in.")
    return OwnModel.open(model_file(folder, data["model"]))


def count(point: Blend) -> int:
    """How many members a point has weights for."""
    return len(point.groups[0]) if isinstance(point, LayerWeights) else len(point)


def model_file(folder: Path, digest: str) -> Path:
    """The file of a model of its own."""
    return folder / f"{digest[:32]}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
