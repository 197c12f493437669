"""The members of a fusion: found, ordered, checked against one another, read on demand."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_compare import adapter_errors
from fusetune.members.adapter_source import AdapterSource
from fusetune.members.base import Base, BaseModel, base_of
from fusetune.members.base_load import load_base
from fusetune.members.binding import listed
from fusetune.members.checkpoints.copies import find_copies
from fusetune.members.checkpoints.wrappers import places_in
from fusetune.members.companions import check_parts
from fusetune.members.compare import differences, mismatch
from fusetune.members.conversion import Conversion, open_member
from fusetune.members.discover import Paths, find_members
from fusetune.members.files import FileSource
from fusetune.members.fit import check_fits_its_model
from fusetune.members.header import TensorSpec
from fusetune.members.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from fusetune.members.member import Member, Source

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class Inspection:
    """What stands in some folders, and whether it can be fused.

    Attributes:
        members: The checkpoints that can be read, in order of trajectory and training step.
        errors: Why they, or others that cannot be read, cannot be fused; empty if they can.
        incomplete: Checkpoints whose writing never ended; left out.
        notes: Why they are, and which paths and copies count once, a sentence each.
        model: Class of Transformers whose tensors the members have; empty where their files
            name none, or nobody asked. Of adapters, that of their base model.
        unchecked: Why it is not known whether adapters fit their base model: it is not named,
            or cannot be loaded here.
    """

    members: tuple[Member, ...]
    errors: tuple[MemberError, ...]
    incomplete: tuple[Path, ...]
    notes: tuple[str, ...]
    model: str = ""
    unchecked: str = ""

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
        base: What adapters are laid on, a model or a function that loads it; by default the
            one that the first adapter names. Not used for whole models.
    """

    def __init__(self, members: Sequence[Member], base: BaseModel | Base | None = None) -> None:
        self.members: tuple[Member, ...] = tuple(members)
        adapters = [member for member in self.members if isinstance(member, AdapterMember)]
        self.adapters: AdapterSource | None = None
        if adapters:
            known = base if isinstance(base, Base) else base_of(adapters, base)
            self.adapters = AdapterSource(adapters, known)
        self._source: Source = self.adapters or FileSource(self.members)
        self._kept: list[object] = []  # folders that go with the pool

    @classmethod
    def open(
        cls,
        paths: Paths,
        base: BaseModel | None = None,
        *,
        allow_pickle: bool = False,
        copies: str | Path | None = None,
    ) -> MemberPool:
        """Find and check members; no tensor is loaded and nothing pickled is read.

        Args:
            paths: A glob, a folder that contains members, or a list of folders. Members are
                all whole models or all LoRA adapters.
            base: What adapters are laid on, a model or a function that loads it; by default
                the one that they name. Loaded when the first tensor is asked for.
            allow_pickle: Consent to members that are files of `torch.save` (`.bin`, `.pt`,
                `.pth`, `.ckpt`); they are read with `weights_only`.
            copies: Where copies as safetensors are kept of members in other formats; by
                default in a temporary folder, which goes with the pool.

        Raises:
            MemberError: If a checkpoint is damaged, if they differ in names, shapes,
                dtypes, architecture or vocabulary, or if there are fewer than two.
        """
        inspection = inspect(paths, allow_pickle=allow_pickle)
        if inspection.errors:
            raise inspection.errors[0]
        if all(member.foreign is None for member in inspection.members):
            return cls(inspection.members, base)
        return cls.of([m.path for m in inspection.members], base, allow_pickle, copies)

    @classmethod
    def of(
        cls,
        places: Sequence[Path],
        base: BaseModel | None = None,
        allow_pickle: bool = False,
        copies: str | Path | None = None,
    ) -> MemberPool:
        """The members at these places, in their order; see `open`."""
        temporary = None
        if copies is None:
            temporary = TemporaryDirectory(prefix="fusetune-")
            copies = temporary.name
        conversion = Conversion(Path(copies) if copies else None, allow_pickle=allow_pickle)
        pool = cls([open_member(path, conversion) for path in places], base)
        return pool.keeping(temporary)

    def extended(self, member: Member) -> MemberPool:
        """A pool with one member more, which fits; the base of adapters is shared."""
        base = None if self.adapters is None else self.adapters.base
        return MemberPool((*self.members, member), base).keeping(*self._kept)

    def take_names_of(self, model: nn.Module) -> None:
        """Call the tensors as a model does that is a part of what the checkpoints hold.

        That is the network in a Lightning module's state dict, or one whose names looked like
        a wrapper's; nothing changes where the names are the model's own. What stands beside
        the network is left out, with a word, if no training changed it or Lightning wrote it.

        Raises:
            MemberError: If the checkpoints have the model more than once.
        """
        first, source = self.members[0], self._source
        if not isinstance(source, FileSource) or (first.config and not first.lightning):
            return
        places = places_in(model, source.tensors)
        beside = source.tensors.keys() - places.values()
        changed = beside - source.constant if beside and not first.lightning else frozenset()
        if not places or changed:
            return
        if beside:
            logger.warning(
                "%s stand beside the model in the checkpoints and are left out.",
                listed(sorted(beside)),
            )
        self._source = FileSource(self.members, places)

    def keeping(self, *things: object) -> MemberPool:
        """The pool itself, which keeps things alive as long as it lives."""
        self._kept += [thing for thing in things if thing is not None]
        return self

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' folder names."""
        return tuple(member.name for member in self.members)

    @property
    def trained(self) -> tuple[int, ...]:
        """Indices of the checkpoints; the model that they began with, if it is one, is none."""
        return tuple(i for i, member in enumerate(self.members) if not member.pretrained)

    @property
    def last(self) -> Member:
        """The last checkpoint."""
        return self.members[self.trained[-1]]

    @property
    def num_parameters(self) -> int:
        """Parameters of the fused model, tied ones once."""
        return sum(t.numel for t in self.tensors.values() if t.dtype.is_floating_point)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What one member has, and the fused model will have, ordered by name."""
        return self._source.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the fused model, or nothing where none is known."""
        return self._source.config

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the fused model is loaded: evaluated, and loaded when saved.

        That of the members' tensors, whatever config.json says, as the program that wrote the
        files may have left there that of the training. Where tensors have several, that of
        config.json.
        """
        dtypes = {t.dtype for t in self.tensors.values() if t.dtype.is_floating_point}
        if len(dtypes) == 1:
            return dtypes.pop()
        named = str(self.config.get("dtype") or self.config.get("torch_dtype"))
        found = getattr(torch, named.removeprefix("torch."), None)
        return found if isinstance(found, torch.dtype) else torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all members, as their files hold them."""
        return sum(member.nbytes for member in self.members)

    @property
    def fingerprint(self) -> str:
        """sha256 of the members' digests in their order; files are hashed if need be.

        Adapters have the digest of their base in theirs. To those that do not know it, how
        their base is quantised is added, which makes other models of them.
        """
        digests = [m.sha256 for m in self.members]
        if self.adapters and any(m.base_digest is None for m in self.adapters.given):
            digests += filter(None, [self.adapters.base.quantisation])
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def constant(self) -> frozenset[str]:
        """Floating-point tensors that are equal, bit by bit, in all members.

        Frozen parameters above all: they are kept once and never averaged.
        """
        return self._source.constant

    def load_tensor(self, index: int, name: str) -> Tensor:
        """A tensor of member `index`: memory-mapped, or merged from base and adapter.

        Raises:
            MemberError: If the file cannot be read any more.
        """
        return self._source.load_tensor(index, name)

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
        self._source.read_part(index, name, part, out)


def inspect(paths: Paths, *, allow_pickle: bool = False, own_model: bool = False) -> Inspection:
    """Say what the checkpoints are, and whether and why they can or cannot be fused.

    Args:
        paths: As of `MemberPool.open`.
        allow_pickle: Consent to pickled ones; others' tensors are not read.
        own_model: Whether they will be put into the model that their configuration names, and
            so have to fit it, too; of adapters, the base model that they name.

    Raises:
        MemberError: Only if there is no checkpoint to speak of.
    """
    found = find_members(paths)
    looking = Conversion(allow_pickle=allow_pickle)
    members: list[Member] = []
    errors: list[MemberError] = []
    for folder in found.folders:
        try:
            members.append(open_member(folder, looking))
        except MemberError as error:
            errors.append(error)
    copies = find_copies(members)
    members = [member for member in members if member.path not in copies]
    repeated = {**found.repeated, **{path: first.path for path, first in copies.items()}}
    if all(member.step is not None for member in members):
        members.sort(key=lambda member: (member.trajectory or 0, member.step or 0))
    if any(isinstance(member, AdapterMember) for member in members):
        errors += adapter_errors(members)
    elif members:
        reference, different = differences(members)
        if different:
            errors.append(mismatch(reference, different))
    if not errors:
        try:
            check_parts(members)
        except MemberError as error:
            errors.append(error)
    if not errors and len(members) < 2:
        others = ", which is all that the paths lead to" if repeated else ""
        errors.append(
            MemberError(
                f"Fusing needs at least two checkpoints; found one: {members[0].path}{others}.",
                hint="Save more checkpoints in training, or give the folder of all of them.",
            )
        )
    model = unchecked = ""
    if own_model and not errors:
        try:
            if isinstance(members[0], AdapterMember):
                model, unchecked = check_fit_their_base(members, allow_pickle)
            else:
                model = check_fits_its_model(members[0])
        except MemberError as error:
            errors.append(error)
    notes = tuple(_notes(found.incomplete, repeated))
    for note in notes:
        logger.warning("%s", note)
    return Inspection(
        tuple(members), tuple(errors), tuple(found.incomplete), notes, model, unchecked
    )


def _notes(left_out: Mapping[Path, str], repeated: Mapping[Path, Path]) -> Iterator[str]:
    for path, why in left_out.items():
        yield f"{path} is left out: {why}."
    for path, first in repeated.items():
        if path == first:
            yield f"{path} is given twice and counts once."
        else:
            yield f"{path} is the same model as {first}: they count once."


def check_fit_their_base(
    members: Sequence[Member], allow_pickle: bool = False
) -> tuple[str, str]:
    """Check adapters against the base model that they name, by the code of their fusion.

    Its values are read where the members know a digest of them; else names and shapes tell all.

    Returns:
        The class of the base model, or why it cannot be had; the other one is empty.

    Raises:
        MemberError: As `check_fit_base`.
    """
    first = members[0]
    assert isinstance(first, AdapterMember)
    empty = not any(isinstance(m, AdapterMember) and m.base_digest for m in members)
    try:
        model = load_base(first, empty=empty)
    except MemberError as error:
        return "", str(error)
    check_fit_base(members, model, allow_pickle)
    return type(model).__name__, ""


def check_fit_base(
    members: Sequence[Member], model: nn.Module, allow_pickle: bool = False
) -> None:
    """Check adapters against a base model, which takes over what they hold of it.

    Raises:
        MemberError: If they do not fit it, or a tensor of it stands in no file.
    """
    pool = MemberPool.of([m.path for m in members], None, allow_pickle)
    assert pool.adapters is not None
    _ = AdapterSource(pool.adapters.given, Base(model, pool.adapters.given)).members
