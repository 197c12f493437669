"""From what a user names (a folder, a glob, a list) to the folders of members, in order."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusetune.errors import MemberError
from fusetune.members import formats
from fusetune.members.adapter import is_adapter
from fusetune.members.checkpoints.steps import STATE, is_numbered
from fusetune.members.fetch import fetch, find_elsewhere, is_url
from fusetune.members.manifest import MANIFEST
from fusetune.members.member import INDEX, SINGLE, looks_like_member

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Found:
    """Folders of members.

    Attributes:
        folders: In natural order of their names (checkpoint-9 before checkpoint-10), or in
            the order in which they were listed; each once. Weights in one file may be a file.
        incomplete: What looks like a checkpoint and was left out → why.
        repeated: Paths and links to a folder that was named already → that folder.
    """

    folders: tuple[Path, ...]
    incomplete: Mapping[Path, str]
    repeated: Mapping[Path, Path]


@dataclass(slots=True)
class _Sorted:
    """Paths as members, and as what was left out with the reason."""

    members: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def find_members(paths: Paths) -> Found:
    """Find the folders that `paths` means.

    Args:
        paths: A glob, a folder that contains members (a Trainer's output folder, a run
            folder or its `members/`), one member, a URL of these (see `fetch`), or a list of
            any. What a pattern or a folder has beside them and what is no checkpoint at all is
            passed over; checkpoints that were not written to their end are told.

    Raises:
        MemberError: If a path does not exist or nothing is found.
    """
    given, left_out = _here([paths] if isinstance(paths, str | Path) else list(paths))
    expanded = [_expand(Path(path).expanduser()) for path in given]
    named = [member for found in expanded for member in found.members]
    folders: dict[Path, Path] = {}
    for member in named:
        place = member.resolve()
        if folders.setdefault(place, member).is_symlink():  # its own name rather than a link's
            folders[place] = member
    repeated: dict[Path, Path] = {}
    for place, first in folders.items():
        others = [member for member in named if member.resolve() == place]
        others.remove(first)
        repeated |= dict.fromkeys(others, first)
    unfinished: dict[Path, tuple[Path, str]] = {}
    for found in expanded:
        for folder, why in found.left_out.items():
            if folder.resolve() not in folders:
                unfinished.setdefault(folder.resolve(), (folder, why))
    left_out |= dict(unfinished.values())
    if not folders:
        listed = "".join(f"\n  {path} is left out: {why}" for path, why in left_out.items())
        raise MemberError(
            f"No checkpoint in {', '.join(str(p) for p in given) or 'an empty list'}."
            + (listed and listed + "\n"),
            hint="Give folders with model.safetensors, a glob such as 'out/checkpoint-*', "
            "or the folder that contains them.",
        )
    return Found(tuple(folders.values()), left_out, repeated)


def _here(given: Sequence[str | Path]) -> tuple[list[str | Path], dict[Path, str]]:
    """The same with copies of members that are elsewhere, in natural order of their URLs.

    And what was left out there, with the reason.
    """
    found: list[str | Path] = []
    left_out: dict[Path, str] = {}
    for path in given:
        if isinstance(path, str) and is_url(path):
            there = find_elsewhere(path)
            urls = sorted(there.members, key=lambda url: natural(Path(url)))
            found += [fetch(url) for url in urls]
            left_out |= {Path(url): why for url, why in there.left_out.items()}
        else:
            found.append(path)
    return found, left_out


def natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    """A key that orders runs of digits by their number."""
    parts = re.split(r"([0-9]+)", str(path))
    return tuple((0, int(part)) if i % 2 else (1, part) for i, part in enumerate(parts))


def _expand(path: Path) -> _Sorted:
    if path.is_dir():
        return _inside(path)
    if path.is_file() and (formats.looks_like(path) or formats.has_usual_name(path)):
        return _Sorted([_home(path)])
    if path.exists():
        raise MemberError(
            f"{path} is a file; a checkpoint is a folder.", hint=f"Give {path.parent}."
        )
    if not glob.has_magic(str(path)):
        raise MemberError(f"{path} does not exist.", hint="Check the path.")
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    return _sorted(matches)


def _inside(folder: Path) -> _Sorted:
    """The members in a folder, or the folder itself if it is one."""
    if (folder / "members").is_dir() and not _has_weights(folder):
        return _inside(folder / "members")
    is_member = looks_like_member(folder)
    is_checkpoint = is_numbered(folder.name) or (folder / STATE).is_file()
    if not is_member and is_checkpoint and (adapter := _named_adapter(folder)):
        return _Sorted([adapter])
    inside = list(folder.iterdir())
    if is_member:
        # A Trainer's output folder has the last model beside its checkpoints; another
        # model's sub-folder (a sentence-transformers module) is no checkpoint.
        inside = [p for p in inside if is_numbered(p.name) and not p.is_file()]
    found = _sorted(inside)
    found.left_out.pop(folder, None)  # named by itself, it is opened, and refused there
    if not found.members and (is_member or not found.left_out):
        found.members.append(folder)
    return found


def _sorted(paths: Iterable[Path]) -> _Sorted:
    """Members and what was left out, in natural order; single files if there is no folder.

    A file beside folders of checkpoints is anything, most often what a script left there.
    Where some members of a parent folder have a manifest, those without are unfinished.
    """
    result = _Sorted()
    there = sorted(paths, key=natural)
    for path in _with_homes(there):
        if why := formats.is_unfinished(path):
            result.left_out[path] = why
        elif path.name.startswith("."):
            continue
        elif looks_like_member(path):
            result.members.append(path)
        elif path.is_dir() and (adapter := _named_adapter(path)):
            result.members.append(adapter)
        elif why := formats.lacks_weights(path):
            result.left_out[path] = why
    folders = [path for path in result.members if path.is_dir()]
    adapters = {path.name for path in folders if path not in there and path.parent in there}
    collected = {path.parent for path in folders if (path / MANIFEST).exists()}
    for path in folders:
        if path in there and path.name in adapters:
            result.left_out[path] = "the checkpoints beside it have an adapter of this name"
        elif path.parent in collected and not (path / MANIFEST).exists():
            result.left_out[path] = f"it has no {MANIFEST}"
    if folders:
        homes = [p for p in folders if p not in there and p.parent not in there]
        beside = homes if len(homes) < len(folders) else []
        passed = {*beside, *result.left_out}
        result.members = [path for path in folders if path not in passed]
    return result


def _with_homes(paths: Sequence[Path]) -> list[Path]:
    """The same with the folders of model.safetensors, of shards and the like in their place.

    Where a folder has files with names of their own, each of its files is a model by itself.
    """
    own = {
        path.parent
        for path in paths
        if path.is_file() and formats.looks_like(path) and not formats.has_usual_name(path)
    }
    found = (
        path.parent
        if path.is_file()
        and formats.has_usual_name(path)
        and (path.parent not in own or not formats.looks_like(path))
        else path
        for path in paths
    )
    return list(dict.fromkeys(found))


def _named_adapter(folder: Path) -> Path | None:
    """The adapter in a checkpoint's sub-folder, where PEFT saves one that has a name.

    Raises:
        MemberError: If there are several.
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and is_adapter(path))
    if len(found) > 1:
        raise MemberError(
            f"{folder} holds {len(found)} adapters: {', '.join(p.name for p in found)}.",
            hint=f"Give one of them: '{folder.parent}/*/{found[0].name}'.",
        )
    return found[0] if found else None


def _home(file: Path) -> Path:
    """The folder of a file that has the name of a whole model or adapter; else the file."""
    return file.parent if formats.has_usual_name(file) else file


def _has_weights(path: Path) -> bool:
    return (path / SINGLE).exists() or (path / INDEX).exists()
