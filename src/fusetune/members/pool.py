"""The members of a fusion: found, ordered, checked against one another, read on demand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.average import StreamingAverage
from fusetune.members.binding import same_bits
from fusetune.members.compare import differences, mismatch
from fusetune.members.discover import Paths, find_members
from fusetune.members.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from fusetune.members.member import Member
from fusetune.members.weights import FusionWeights

__all__ = [
    "MANIFEST",
    "Inspection",
    "Manifest",
    "Member",
    "MemberPool",
    "inspect",
    "read_manifest",
    "write_manifest",
]


PROBE = 1024  # elements that are compared before whole tensors are


@dataclass(frozen=True, slots=True)
class Inspection:
    """What stands in some folders, and whether it can be fused.

    Attributes:
        members: The checkpoints that can be read, in order of trajectory and training step.
        errors: Why they, or others that cannot be read, cannot be fused; empty if they can.
        incomplete: Folders whose writing never ended; left out.
    """

    members: tuple[Member, ...]
    errors: tuple[MemberError, ...]
    incomplete: tuple[Path, ...]

    @property
    def compatible(self) -> bool:
        """Whether the members can be fused."""
        return not self.errors

    @property
    def problems(self) -> tuple[str, ...]:
        """The errors as texts, hints included."""
        return tuple(str(error) for error in self.errors)


class MemberPool:
    """k ≥ 2 checkpoints that fit together; tensors stay on the disk until they are asked for.

    Args:
        members: In the order of the weights; compatible, as `open` makes sure.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members: tuple[Member, ...] = tuple(members)
        self._handles: dict[Path, Any] = {}
        self._files: dict[Path, FileIO] = {}

    @classmethod
    def open(cls, paths: Paths) -> MemberPool:
        """Find and check members; no tensor is loaded and nothing pickled is read.

        Args:
            paths: A glob, a folder that contains members, or a list of folders.

        Raises:
            MemberError: If a checkpoint is damaged, if they differ in names, shapes,
                dtypes, architecture or vocabulary, or if there are fewer than two.
        """
        inspection = inspect(paths)
        if inspection.errors:
            raise inspection.errors[0]
        return cls(inspection.members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' folder names."""
        return tuple(member.name for member in self.members)

    @property
    def num_parameters(self) -> int:
        """Parameters of one member."""
        return self.members[0].num_parameters

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all members."""
        return sum(member.nbytes for member in self.members)

    @property
    def fingerprint(self) -> str:
        """sha256 of the members' digests in their order; files are hashed if need be."""
        return hashlib.sha256("\n".join(m.sha256 for m in self.members).encode()).hexdigest()

    @cached_property
    def constant(self) -> frozenset[str]:
        """Floating-point tensors that are equal, bit by bit, in all members.

        Frozen parameters above all: they are kept once and never averaged. Only what begins
        alike is read whole.
        """
        first, *others = range(len(self.members))
        return frozenset(
            name
            for name, info in self.members[first].tensors.items()
            if info.dtype.is_floating_point
            and info.numel
            and all(self._equal(name, first, i, slice(0, PROBE)) for i in others)
            and all(self._equal(name, first, i, slice(None)) for i in others)
        )

    def _equal(self, name: str, a: int, b: int, part: slice) -> bool:
        return same_bits(self.load_tensor(i, name).view(-1)[part] for i in (a, b))

    def load_tensor(self, index: int, name: str) -> Tensor:
        """A tensor of member `index`, memory-mapped: its pages are read when it is used.

        Raises:
            MemberError: If the file cannot be read any more.
        """
        file = self.members[index].tensors[name].file
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._handles[file].get_tensor(name)
        except Exception as error:  # safetensors has no public base for its errors
            raise _unreadable(file, error) from error
        return tensor

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Read elements of a tensor of member `index` into `out`, past any mapping.

        Unlike mapped pages, what was read does not stay in this process's memory. Safe to
        call from several threads.

        Args:
            index: The member.
            name: The tensor.
            part: Elements, counted in row-major order.
            out: As many elements, contiguous, of the stored dtype, on the CPU.

        Raises:
            MemberError: If the file has become shorter, or cannot be read any more.
        """
        info = self.members[index].tensors[name]
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

    def _file(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files.setdefault(path, path.open("rb", buffering=0))
        return self._files[path]

    def average_into(self, model: nn.Module, weights: FusionWeights) -> None:
        """Make `model` θ̄(w), reading the members from the disk.

        For one w; for many, `average.plan` checks the model once and may keep the
        members in memory.

        Raises:
            MemberError: If the model is not of the members' kind.
        """
        StreamingAverage(self, model).into_model(weights)

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process.
        return {"members": self.members, "_handles": {}, "_files": {}}


def _unreadable(file: Path, error: Exception) -> MemberError:
    return MemberError(
        f"{file} cannot be read: {error}.",
        hint="Copy or save this checkpoint again, or leave it out.",
    )


def inspect(paths: Paths) -> Inspection:
    """Say what the checkpoints are, and whether and why they can or cannot be fused.

    Raises:
        MemberError: Only if there is no checkpoint to speak of.
    """
    found = find_members(paths)
    members: list[Member] = []
    errors: list[MemberError] = []
    for folder in found.folders:
        try:
            members.append(Member.open(folder))
        except MemberError as error:
            errors.append(error)
    if all(member.step is not None for member in members):
        members.sort(key=lambda member: (member.trajectory or 0, member.step or 0))
    if members:
        reference, different = differences(members)
        if different:
            errors.append(mismatch(reference, different))
    if not errors and len(members) < 2:
        errors.append(
            MemberError(
                f"Fusing needs at least two checkpoints; found one: {members[0].path}.",
                hint="Save more checkpoints in training, or give the folder of all of them.",
            )
        )
    return Inspection(tuple(members), tuple(errors), found.incomplete)
