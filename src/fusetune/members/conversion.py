"""Checkpoints in other formats as members: looked at where they are, or kept as safetensors.

A copy is an ordinary model folder, named by the digest of what it was made of, so that it is
made once, and anew where the checkpoint has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members import formats, gguf, pickled
from fusetune.members.adapter import CONFIG, WEIGHTS, AdapterMember, is_adapter, of_peft
from fusetune.members.checkpoints.steps import step_of
from fusetune.members.checkpoints.wrappers import own_names
from fusetune.members.companions import copy_files, files_of
from fusetune.members.disk import file_sha256, replaced_folder, require_space, write_json
from fusetune.members.formats import CONSENT, Foreign
from fusetune.members.header import TensorInfo, read_header
from fusetune.members.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    read_manifest,
    write_manifest,
)
from fusetune.members.member import (
    INDEX,
    SINGLE,
    Member,
    module_folders,
    read_json,
    require_unquantised,
)
from fusetune.members.writer import write_tensors

MAKE = 2
"""Counted up when copies are made in another way, so that older ones are not used."""

CONFIGURATIONS = ("config.json", CONFIG)
LIGHTNING = "written-by-lightning"
"""A file in a copy, which says so."""


class Conversion:
    """Opens checkpoints in other formats than safetensors.

    Args:
        folder: Where copies as safetensors are kept. None only looks: the members that are
            opened have no weights that could be averaged, and nothing is written.
        allow_pickle: Consent to files of `torch.save`, which are read with `weights_only`.
    """

    def __init__(self, folder: Path | None = None, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        self.allow_pickle = allow_pickle

    def open(self, path: Path, foreign: Foreign) -> Member:
        """The checkpoint at a path, under its own name.

        Its digest is that of its own files. `Member.copy` is the folder of the copy.

        Raises:
            MemberError: If it is pickled and there is no consent, or it cannot be read.
            StageError: If the disk is too small for a copy.
        """
        if foreign.format == "pickle" and not self.allow_pickle:
            raise MemberError(
                f"{path} holds only pickled weights, and loading a pickle can run any code.",
                CONSENT,
            )
        if foreign.index is not None:
            check_shards(foreign)
        if self.folder is None:
            return _averageable(_look(path, foreign))
        files = {file: file_sha256(file) for file in foreign.files}
        copy = self._copy(path, foreign, files)
        made, manifest = read_manifest(copy), _manifest(path, foreign)
        assert made is not None  # it is what makes a copy complete
        records = {f.name: FileRecord(d, f.stat().st_size) for f, d in files.items()}
        opened = AdapterMember.open(copy) if foreign.adapter else of_peft(Member.open(copy))
        return replace(
            opened,
            path=path,
            step=_step(path, foreign, made.step if made.step >= 0 else None),
            files=foreign.files,
            manifest=replace(manifest or Manifest(made.step, None, {}), files=records),
            copy=copy,
            lightning=(copy / LIGHTNING).exists(),
        )

    def _copy(self, path: Path, foreign: Foreign, files: Mapping[Path, str]) -> Path:
        """The folder of the copy, made if it is not there."""
        assert self.folder is not None
        companions = _companions(path, foreign)
        digests = {file.name: digest for file, digest in files.items()}
        digests |= {name: file_sha256(file) for name, file in companions.items()}
        text = "".join(f"{name}:{digest}\n" for name, digest in digests.items())
        name = hashlib.sha256(f"{MAKE} {foreign.format}\n{text}".encode()).hexdigest()[:16]
        folder = self.folder / name
        if read_manifest(folder) is not None:
            return folder
        growth = 8 if foreign.format == "gguf" else 1  # 4 bits become 32
        size = sum(file.stat().st_size for file in files)
        require_space(self.folder, growth * size)
        with replaced_folder(folder) as new:
            copy_files(companions, new)
            step = _write(path, foreign, new)
            write_manifest(new, step=-1 if step is None else step, epoch=None)
        return folder


def open_member(path: Path, conversion: Conversion | None = None) -> Member:
    """A whole model or an adapter, whichever stands at a path.

    Args:
        path: A folder; of another format than safetensors, it may be a file.
        conversion: Opens those, and safetensors files in which names are a wrapper's; without
            it they are only looked at, and nothing is pickled.

    Raises:
        MemberError: As `Member.open`, `AdapterMember.open` and `Conversion.open`.
    """
    conversion = conversion or Conversion()
    if is_adapter(path):
        return AdapterMember.open(path)
    if not (path / SINGLE).exists() and not (path / INDEX).exists():
        foreign = formats.find(path)
        if foreign is not None:
            return conversion.open(path, foreign)
        formats.require_whole(path)
        why = formats.lacks_weights(path)
        if why is not None and not (path / MANIFEST).exists():
            raise MemberError(
                f"{path} is no whole checkpoint: {why}.",
                hint="Copy or save this checkpoint again, or leave it out.",
            )
    member = Member.open(path)
    own = own_names(member.tensors, collected=member.manifest is not None, where=path)
    if all(name == network for name, network in own.items()):
        return _averageable(member)
    if module_folders(path):
        raise MemberError(
            f"{path} has names of a wrapper ({min(own.keys() - own.values())}), and modules in "
            "other folders.",
            hint="Save the model inside of its wrapper by its save_pretrained.",
        )
    index = path / INDEX if len(member.files) > 1 else None
    return conversion.open(path, Foreign("safetensors", member.files, index))


def _averageable(member: Member) -> Member:
    """A member as the adapter that it may be.

    Raises:
        MemberError: If it is a whole model of quantised weights.
    """
    found = of_peft(member)
    if found is member:
        require_unquantised(member)
    return found


def check_shards(foreign: Foreign) -> dict[str, str]:
    """Tensor name → shard, of an index whose shards are all there.

    Raises:
        MemberError: If one is missing or the index is damaged.
    """
    assert foreign.index is not None
    found = read_json(foreign.index).get("weight_map")
    there = {file.name for file in foreign.files}
    if not isinstance(found, dict) or not found:
        raise MemberError(f"{foreign.index} has no weight_map.", "Copy the checkpoint again.")
    absent = sorted({str(file) for file in found.values()} - there)
    if absent:
        raise MemberError(
            f"{foreign.index.parent} lacks {len(absent)} of its shards ({absent[0]}, …).",
            "Copy the checkpoint again, or leave it out.",
        )
    return {str(name): str(file) for name, file in found.items()}


def _look(path: Path, foreign: Foreign) -> Member:
    """What a checkpoint says of itself; of mapped files, no data are read."""
    home, first = foreign.files[0].parent, foreign.files[0]
    beside = _companions(path, foreign)
    config = read_json(beside["config.json"]) if "config.json" in beside else {}
    manifest, step, lightning = _manifest(path, foreign), None, False
    if foreign.format == "gguf":
        specs, config = gguf.describe(first)
        tensors = {n: TensorInfo(s.dtype, s.shape, first, 0) for n, s in specs.items()}
    else:
        content = _read(path, foreign)
        step, lightning = content.step, content.lightning
        tensors = {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape), file, 0)
            for file, found in content.tensors.items()
            for name, tensor in found.items()
        }
    ordered = dict(sorted(tensors.items()))
    if foreign.adapter:
        return replace(AdapterMember.of(home, ordered, foreign.files, None), foreign=foreign)
    return Member(
        path,
        _step(path, foreign, step),
        ordered,
        config,
        foreign.files,
        manifest,
        lightning=lightning,
        foreign=foreign,
    )


@dataclass(frozen=True, slots=True)
class _Content:
    """The weights of all files under the network's own names; see `pickled.Pickled`."""

    tensors: Mapping[Path, Mapping[str, Tensor]]
    step: int | None
    lightning: bool


def _read(path: Path, foreign: Foreign) -> _Content:
    """The weights in files of safetensors or of torch.save, mapped where that can be.

    Raises:
        MemberError: If a file cannot be read, or shards have not what their index names.
    """
    raw: dict[Path, Mapping[str, Tensor]] = {}
    step, lightning = None, False
    for file in foreign.files:
        if foreign.format == "safetensors":
            raw[file] = _mapped(file)
            continue
        content = pickled.read(file)
        raw[file], lightning = content.tensors, lightning or content.lightning
        step = content.step if content.step is not None else step
    names = [name for tensors in raw.values() for name in tensors]
    indexed = {} if foreign.index is None else check_shards(foreign)
    if absent := indexed.keys() - set(names):
        raise MemberError(
            f"The shards of {foreign.files[0].parent} lack {min(absent)!r}, which their index "
            "names.",
            "Copy the checkpoint again, or leave it out.",
        )
    collected = _manifest(path, foreign) is not None
    own = own_names(names, collected=collected, lightning=lightning, where=path)
    tensors = {
        file: {own[name]: tensor for name, tensor in found.items() if name in own}
        for file, found in raw.items()
    }
    return _Content(tensors, step, lightning)


def mapped_tensors(member: Member) -> Mapping[str, Tensor]:
    """A member's tensors by name, mapped from its files where that can be; none of GGUF files.

    Raises:
        MemberError: If a file cannot be read any more.
    """
    if member.foreign is not None:
        found = _read(member.path, member.foreign).tensors
    else:
        files = dict.fromkeys(info.file for info in member.tensors.values())
        mapped = {file: _mapped(file) for file in files}
        return {name: mapped[i.file][i.key or name] for name, i in member.tensors.items()}
    everything = {name: t for tensors in found.values() for name, t in tensors.items()}
    return {name: everything[name] for name in member.tensors}


def _mapped(file: Path) -> dict[str, Tensor]:
    names = read_header(file)  # which says in words what is wrong with a file
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in names}


def _companions(path: Path, foreign: Foreign) -> dict[str, Path]:
    """Name → file of what goes with weights: in their folder, or in the checkpoint's.

    Of a file by itself, that is the folder around it only if it is a model's.
    """
    found: dict[str, Path] = {}
    for home in dict.fromkeys((foreign.files[0].parent, path)):
        own = {name: home / name for name in CONFIGURATIONS if (home / name).is_file()}
        found = {**(files_of(home) if own or home == path else {}), **own, **found}
    return found


def _write(path: Path, foreign: Foreign, folder: Path) -> int | None:
    """Write the weights as safetensors; the step, where the files say it."""
    if foreign.format == "gguf":
        gguf.convert(foreign.files[0], folder)
        return None
    content = _read(path, foreign)
    names: dict[str, str] = {}
    sharded = len(foreign.files) > 1
    for number, (_, tensors) in enumerate(content.tensors.items(), 1):
        name = f"model-{number:05d}-of-{len(foreign.files):05d}.safetensors"
        target = name if sharded else WEIGHTS if foreign.adapter else SINGLE
        write_tensors(folder / target, tensors)
        names |= dict.fromkeys(tensors, target)
    if sharded:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": dict(sorted(names.items()))})
    if content.lightning:
        (folder / LIGHTNING).touch()
    return content.step


def _manifest(path: Path, foreign: Foreign) -> Manifest | None:
    """The manifest that our collector wrote for a checkpoint with a wrapper's names."""
    return read_manifest(path) if foreign.format == "safetensors" else None


def _step(path: Path, foreign: Foreign, said: int | None) -> int | None:
    """The step that the file says, else its path; numbers in the name of a GGUF count bits."""
    if said is not None:
        return said
    if foreign.format == "gguf" and path.is_file():
        return None
    return step_of(path, _manifest(path, foreign))
