"""Where the tensors of whole checkpoints are read: from their safetensors files, on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.binding import same_bits
from fusetune.members.header import TensorInfo
from fusetune.members.member import Member

PROBE = 1024  # elements that are compared before whole tensors are


class FileSource:
    """Of checkpoints that are whole models.

    Args:
        members: Compatible with one another.
        places: Name of a tensor → its name in the files, of those that are taken; by default
            all, under the names that they have.
    """

    def __init__(
        self, members: Sequence[Member], places: Mapping[str, str] | None = None
    ) -> None:
        self.members = tuple(members)
        self._places = dict(places or {})
        self._tensors = {name: self._info(0, name) for name in sorted(self._places)}
        self._handles: dict[Path, Any] = {}
        self._files: dict[Path, FileIO] = {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the first member; the others have the same."""
        return self._tensors or self.members[0].tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the first member."""
        return self.members[0].config

    @cached_property
    def constant(self) -> frozenset[str]:
        """Frozen parameters above all. Only what begins alike is read whole."""
        others = range(1, len(self.members))
        return frozenset(
            name
            for name, info in self.tensors.items()
            if info.dtype.is_floating_point
            and info.numel
            and all(self._equal(name, 0, i, slice(0, PROBE)) for i in others)
            and all(self._equal(name, 0, i, slice(None)) for i in others)
        )

    def _equal(self, name: str, a: int, b: int, part: slice) -> bool:
        return same_bits(self.load_tensor(i, name).view(-1)[part] for i in (a, b))

    def load_tensor(self, index: int, name: str) -> Tensor:
        """A tensor, memory-mapped: its pages are read when it is used.

        Raises:
            MemberError: If the file cannot be read any more.
        """
        info = self._info(index, name)
        file, key = info.file, info.key or self._places.get(name, name)
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._handles[file].get_tensor(key)
        except Exception as error:  # safetensors has no public base for its errors
            raise _unreadable(file, error) from error
        return tensor

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Read elements into `out`, past any mapping; safe from several threads.

        Raises:
            MemberError: If the file has become shorter, or cannot be read any more.
        """
        info = self._info(index, name)
        data = out.view(torch.uint8).numpy().data
        offset = info.offset + part.start * info.dtype.itemsize
        try:
            descriptor = self._file(info.file).fileno()
            while len(data):
                read = os.preadv(descriptor, [data], offset)
                if read == 0:
                    raise OSError("it has become shorter")
                data, offset = data[read:], offset + read
        except OSError as error:
            raise _unreadable(info.file, error) from error

    def read(self, index: int, name: str) -> Tensor:
        """A whole tensor in memory of its own, of which no file stays mapped."""
        info = self._info(index, name)
        tensor = torch.empty(info.shape, dtype=info.dtype)
        if info.numel:
            self.read_part(index, name, slice(0, info.numel), tensor.view(-1))
        return tensor

    def _info(self, index: int, name: str) -> TensorInfo:
        return self.members[index].tensors[self._places.get(name, name)]

    def _file(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files.setdefault(path, path.open("rb", buffering=0))
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process.
        return {**self.__dict__, "_handles": {}, "_files": {}}


def _unreadable(file: Path, error: Exception) -> MemberError:
    return MemberError(
        f"{file} cannot be read: {error}.",
        hint="Copy or save this checkpoint again, or leave it out.",
    )
