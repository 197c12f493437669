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

MAX_HEADER = 100_000_000  # bytes; the format's own limit

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
    """

    file: Path
    offset: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor name → dtype and shape of one safetensors file.

    Raises:
        MemberError: If the file is truncated, is not safetensors, or has a dtype that
            cannot be averaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= MAX_HEADER:
                raise _invalid(file, f"is not a safetensors file ({size:,} bytes)")
            if 8 + length > size:
                raise _truncated(file, 8 + length, size)
            raw = json.loads(stream.read(length))
    except OSError as error:
        raise _invalid(file, f"cannot be read ({error})") from error
    except ValueError as error:
        raise _invalid(file, "is not a safetensors file (its header is not JSON)") from error
    if not isinstance(raw, dict):
        raise _invalid(file, "is not a safetensors file (its header is not an object)")
    raw.pop("__metadata__", None)
    infos, end = {}, 0
    for name, entry in raw.items():
        infos[name], stop = _entry(file, name, entry, 8 + length)
        end = max(end, stop)
    if 8 + length + end > size:
        raise _truncated(file, 8 + length + end, size)
    return infos


def _entry(file: Path, name: str, entry: Any, data: int) -> tuple[TensorInfo, int]:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop))
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
    return info, stop


def _truncated(file: Path, expected: int, size: int) -> MemberError:
    return MemberError(
        f"{file} is truncated: its header describes {expected:,} bytes, it has {size:,}.",
        hint="Copy or save this checkpoint again, or leave it out.",
    )


def _invalid(file: Path, what: str) -> MemberError:
    return MemberError(f"{file} {what}.", hint="Copy or save this checkpoint again.")
