"""The weights of a base model by name; those of quantised layers are made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock

import torch
from torch import Tensor, nn

from fusetune.members.header import TensorSpec
from fusetune.models.quantised import dense, of_weight, plain_dtype, shape_of

KEPT = 2  # weights of quantised layers that are kept, in the dtype of the others


class BaseTensors(Mapping[str, Tensor]):
    """Name → W, as loaded, on the CPU; of tied names only the first, as in files.

    A quantised layer counts as the plain layer that computes the same: its weight is made
    from its levels, in the dtype of the weights that are not quantised. The last ones are
    kept, as readers go through all members of one tensor before they take the next.

    Args:
        model: The base model.
        layers: Its quantised layers, by their paths.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._plain: dict[str, Tensor] = {}
        seen: set[tuple[object, ...]] = set()
        for name, value in model.state_dict(keep_vars=True).items():
            if of_weight(name, layers):
                continue
            place = identity(value)
            if place not in seen or not value.numel():
                self._plain[name] = value.detach() if value.is_meta else value.detach().cpu()
            seen.add(place)
        self._layers = {f"{name}.weight": layer for name, layer in layers.items()}
        self._dtype = plain_dtype(model)
        self._names = sorted({*self._plain, *self._layers})
        self._made: dict[str, Tensor] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> Tensor:
        return self._plain[name] if name in self._plain else self._dense(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def plain(self) -> dict[str, Tensor]:
        """Those that are not quantised; what is put here takes the place of what was."""
        return self._plain

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape; no weight is made for it."""
        if name in self._layers:
            return TensorSpec(self._dtype, shape_of(self._layers[name]))
        tensor = self._plain[name]
        return TensorSpec(tensor.dtype, tuple(tensor.shape))

    def on_device(self, name: str) -> Tensor:
        """The weight of a quantised layer where the layer is, to be used once."""
        return dense(self._layers[name]).to(self._dtype)

    def _dense(self, name: str) -> Tensor:
        layer = self._layers[name]
        with self._lock:
            if name not in self._made:
                while len(self._made) >= KEPT:
                    del self._made[next(iter(self._made))]
                with torch.no_grad():
                    self._made[name] = dense(layer).to("cpu", self._dtype)
            return self._made[name]


def identity(value: Tensor) -> tuple[object, ...]:
    """A key that is equal for tensors of one storage; on the meta device, of one object."""
    if value.data_ptr() == 0:
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride())
