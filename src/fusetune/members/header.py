"""The header of a safetensors file, read without loading, and checked against the file.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian N, N
bytes of JSON (name → dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusetune.errors import MemberError
from fusetune.files.record import regular

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_DIMENSIONS = 64  # of a tensor; PyTorch's own limit

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, wherever it stands.

    Attributes:
        dtype: As stored.
        shape: As stored.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        return f"{shape} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, slots=True)
class TensorInfo(TensorSpec):
    """What the header says of one tensor.

    Attributes:
        file: The safetensors file that holds it.
        offset: Of its data in the file, in bytes.
        key: Its name in the file, where modules have a folder each with which the tensor's
            name begins; empty where it has the same name there.
    """

    file: Path
    offset: int
    key: str = ""


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor name → dtype and shape of one safetensors file.

    Raises:
        MemberError: If the file is truncated, is not safetensors, has tensors that overlap
            or bytes that are no tensor's, or a dtype that cannot be averaged.
    """
    try:
        size = regular(file).st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= MAX_HEADER:
                raise _invalid(file, f"is not a safetensors file ({size:,} bytes)")
            if 8 + length > size:
                raise _truncated(file, 8 + length, size)
            text = stream.read(length).decode("utf-8")
            raw = json.loads(text, object_pairs_hook=_without_doubles)
    except OSError as error:
        raise _invalid(file, f"cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(file, "is not a safetensors file (its header is not JSON)") from error
    if not isinstance(raw, dict):
        raise _invalid(file, "is not a safetensors file (its header is not an object)")
    metadata = raw.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _invalid(file, "has a damaged header: its metadata are not texts")
    infos = {name: _entry(file, name, entry, 8 + length) for name, entry in raw.items()}
    _check_places(file, infos, 8 + length, size)
    return infos


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _check_places(file: Path, infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """The tensors follow one another without holes, up to the end of the file.

    The format asks for that: no byte belongs to two tensors, and none to nobody.
    """
    end = start
    for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            what = "overlaps another tensor" if info.offset < end else "leaves a hole before it"
            raise _invalid(file, f"has a damaged header: {name!r} {what}")
        end += info.nbytes
    if end > size:
        raise _truncated(file, end, size)
    if end < size:
        raise _invalid(file, f"has {size - end:,} bytes that belong to no tensor")


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _entry(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        sound = isinstance(dtype, str) and len(shape) <= MAX_DIMENSIONS
        sound = sound and all(_is_size(n) for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise _invalid(file, f"has a damaged header: tensor {name!r} is not described")
    if dtype not in DTYPES:
        raise MemberError(
            f"{file} stores {name!r} as {dtype}, which cannot be averaged.",
            hint=f"Save the model in one of {', '.join(DTYPES)}.",
        )
    info = TensorInfo(DTYPES[dtype], shape, file, data + start)
    if stop - start != info.nbytes:
        raise _invalid(
            file,
            f"has a damaged header: {name!r} takes {stop - start:,} bytes, not {info.nbytes:,}",
        )
    return info


def _truncated(file: Path, expected: int, size: int) -> MemberError:
    return MemberError(
        f"{file} is truncated: its header describes {expected:,} bytes, it has {size:,}.",
        hint="Copy or save this checkpoint again, or leave it out.",
    )


def _invalid(file: Path, what: str) -> MemberError:
    return MemberError(f"{file} {what}.", hint="Copy or save this checkpoint again.")
