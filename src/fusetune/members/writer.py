"""Write θ̄(w) file to file: one pass over the members, and memory for a few tiles.

The format is https://github.com/huggingface/safetensors#format: 8 bytes little-endian N, N
bytes of JSON (name → dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from fusetune.members.averaging import Average
from fusetune.members.disk import write_json
from fusetune.members.header import DTYPES, TensorSpec
from fusetune.members.points import Point
from fusetune.members.saved_layout import converts, to_saved_layout

PATTERN = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ALIGNMENT = 8  # bytes; of the data's start, as the format's own library writes it
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def write_average(
    average: Average,
    point: Point,
    folder: Path,
    *,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Write the point's model as safetensors, in shards with an index if it is large.

    The bits are those of `Average.tensors`. Adapters are merged under the names of the base
    model; where Transformers saves that in another layout, the whole model is made in memory
    and converted.

    Args:
        average: Of the members.
        point: What to write.
        folder: Exists; files of other names in it stay.
        max_shard_size: Largest file, in bytes or as "5GB"; a larger tensor is a file by
            itself.
        dtype: Of the written floating-point tensors; by default as the members store them.
    """
    converted = _converted(average, point)
    tensors: Mapping[str, TensorSpec] = average.pool.tensors
    if converted is not None:
        tensors = {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in converted.items()}
    if dtype is not None:
        tensors = {
            name: replace(info, dtype=dtype) if info.dtype.is_floating_point else info
            for name, info in tensors.items()
        }
    modules: dict[str, dict[str, TensorSpec]] = {}  # folder → name in its file → tensor
    for name, info in tensors.items():
        if key := getattr(info, "key", ""):
            modules.setdefault(name.removesuffix(f"/{key}"), {})[key] = info
    split = split_state_dict_into_shards_factory(
        {name: info for name, info in tensors.items() if not getattr(info, "key", "")},
        get_storage_size=lambda info: info.nbytes,
        filename_pattern=PATTERN,
        max_shard_size=max_shard_size,
    )
    places: dict[str, _Place] = {}
    with contextlib.ExitStack() as stack:
        for name, names in split.filename_to_tensors.items():
            places |= stack.enter_context(_shard(folder / name, names, tensors))
        for module, inner in modules.items():
            (folder / module).mkdir(exist_ok=True)
            found = stack.enter_context(_shard(folder / module / SINGLE, list(inner), inner))
            places |= {f"{module}/{key}": place for key, place in found.items()}
        if converted is not None:
            for name, tensor in converted.items():
                places[name].write(slice(0, tensor.numel()), tensor.reshape(-1))
        else:
            for name, part, values in average.parts(point):
                places[name].write(part, values)
    if split.is_sharded:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
            "weight_map": dict(sorted(split.tensor_to_filename.items())),
        }
        write_json(folder / INDEX, index)
    written = [folder / module / SINGLE for module in modules]
    return [*(folder / name for name in split.filename_to_tensors), *written]


def _converted(average: Average, point: Point) -> dict[str, Tensor] | None:
    """The model in the layout of files, where the average is of tensors in another one."""
    adapters = getattr(average.pool, "adapters", None)
    if adapters is None or not converts(adapters.base.model):
        return None
    return to_saved_layout(adapters.base.model, average.tensors(point))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file, one after the other: memory for one of them.

    Args:
        path: The file.
        tensors: Name → tensor; of a dtype of `header.DTYPES`.
    """
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with _shard(path, list(specs), specs) as places:
        for name, tensor in tensors.items():
            if tensor.numel():
                flat = tensor.detach().reshape(-1)
                places[name].write(slice(0, len(flat)), flat)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's data stand in an open file."""

    descriptor: int
    offset: int
    dtype: torch.dtype

    def write(self, part: slice, values: Tensor) -> None:
        """Write elements `part` of the flattened tensor, in the tensor's dtype."""
        stored = values.to("cpu", self.dtype).contiguous()
        data = stored.view(torch.uint8).numpy().data
        offset = self.offset + part.start * self.dtype.itemsize
        while len(data):
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written


@contextlib.contextmanager
def _shard(
    path: Path, names: Sequence[str], tensors: Mapping[str, TensorSpec]
) -> Iterator[dict[str, _Place]]:
    """An open file with its header written; yields the place of each tensor."""
    # As the format's library does: wide dtypes first, so that every tensor is aligned.
    order = sorted(names, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name in order:
        info = tensors[name]
        offsets[name], end = end, end + info.nbytes
        header[name] = {
            "dtype": NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
        yield {
            name: _Place(file.fileno(), start + offsets[name], tensors[name].dtype)
            for name in order
        }
