"""Checkpoints in other formats as members: looked at where they are, or kept as safetensors.

A copy is an ordinary model folder, named by the digest of what it was made of, so that it is
made once, and anew where the checkpoint has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fusetune.errors import MemberError
from fusetune.members import formats, gguf, pickled
from fusetune.members.adapter import CONFIG, WEIGHTS, AdapterMember, is_adapter, of_peft
from fusetune.members.companions import copy_files, files_of
from fusetune.members.disk import file_sha256, replaced_folder, require_space, write_json
from fusetune.members.formats import CONSENT, Foreign
from fusetune.members.header import TensorInfo
from fusetune.members.manifest import FileRecord, Manifest, read_manifest, write_manifest
from fusetune.members.member import INDEX, SINGLE, Member, read_json, step_of
from fusetune.members.writer import write_tensors

MAKE = 1
"""Counted up when copies are made in another way, so that older ones are not used."""

CONFIGURATIONS = ("config.json", CONFIG)


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
            return of_peft(_look(path, foreign))
        files = {file: file_sha256(file) for file in foreign.files}
        copy = self._copy(path, foreign, files)
        manifest = read_manifest(copy)
        assert manifest is not None  # it is what makes a copy complete
        records = {f.name: FileRecord(d, f.stat().st_size) for f, d in files.items()}
        opened = AdapterMember.open(copy) if foreign.adapter else of_peft(Member.open(copy))
        return replace(
            opened,
            path=path,
            step=manifest.step if manifest.step >= 0 else _step(path, foreign),
            files=foreign.files,
            manifest=Manifest(manifest.step, None, records),
            copy=copy,
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
        growth = 1 if foreign.format == "pickle" else 8  # 4 bits become 32
        size = sum(file.stat().st_size for file in files)
        require_space(self.folder, growth * size)
        with replaced_folder(folder) as new:
            copy_files(companions, new)
            step = _write(foreign, new)
            write_manifest(new, step=-1 if step is None else step, epoch=None)
        return folder


def open_member(path: Path, conversion: Conversion | None = None) -> Member:
    """A whole model or an adapter, whichever stands at a path.

    Args:
        path: A folder; of another format than safetensors, it may be a file.
        conversion: Opens those; without it they are only looked at, and nothing is pickled.

    Raises:
        MemberError: As `Member.open`, `AdapterMember.open` and `Conversion.open`.
    """
    if is_adapter(path):
        return AdapterMember.open(path)
    if not (path / SINGLE).exists() and not (path / INDEX).exists():
        foreign = formats.find(path)
        if foreign is not None:
            return (conversion or Conversion()).open(path, foreign)
        formats.require_whole(path)
    return of_peft(Member.open(path))


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
    step = _step(path, foreign)
    if foreign.format == "gguf":
        specs, config = gguf.describe(first)
        tensors = {n: TensorInfo(s.dtype, s.shape, first, 0) for n, s in specs.items()}
    else:
        tensors = {}
        for file in foreign.files:
            found = pickled.read(file)
            step = found.step if found.step is not None else step
            for name, t in found.tensors.items():
                tensors[name] = TensorInfo(t.dtype, tuple(t.shape), file, 0)
    ordered = dict(sorted(tensors.items()))
    if foreign.adapter:
        return AdapterMember.of(home, ordered, foreign.files, None)
    return Member(path, step, ordered, config, foreign.files)


def _companions(path: Path, foreign: Foreign) -> dict[str, Path]:
    """Name → file of what goes with weights: in their folder, or in the checkpoint's.

    Of a file by itself, that is the folder around it only if it is a model's.
    """
    found: dict[str, Path] = {}
    for home in dict.fromkeys((foreign.files[0].parent, path)):
        own = {name: home / name for name in CONFIGURATIONS if (home / name).is_file()}
        found = {**(files_of(home) if own or home == path else {}), **own, **found}
    return found


def _write(foreign: Foreign, folder: Path) -> int | None:
    """Write the weights as safetensors; the step, where the files say it."""
    if foreign.format == "gguf":
        gguf.convert(foreign.files[0], folder)
        return None
    step: int | None = None
    names: dict[str, str] = {}
    sharded = len(foreign.files) > 1
    for number, file in enumerate(foreign.files, 1):
        found = pickled.read(file)
        step = found.step if found.step is not None else step
        name = f"model-{number:05d}-of-{len(foreign.files):05d}.safetensors"
        target = name if sharded else WEIGHTS if foreign.adapter else SINGLE
        write_tensors(folder / target, found.tensors)
        names |= dict.fromkeys(found.tensors, target)
    wanted = {} if foreign.index is None else check_shards(foreign)
    if absent := wanted.keys() - names.keys():
        raise MemberError(
            f"The shards of {foreign.files[0].parent} lack {min(absent)!r}, which their index "
            "names.",
            "Copy the checkpoint again, or leave it out.",
        )
    if sharded:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": dict(sorted(names.items()))})
    return step


def _step(path: Path, foreign: Foreign) -> int | None:
    """The step in a checkpoint's name; numbers in that of a GGUF file count bits."""
    return None if foreign.format == "gguf" and path.is_file() else step_of(path)
