"""From what a user names (a folder, a glob, a list) to the folders of members, in order."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import MemberError
from fusetune.members import formats
from fusetune.members.fetch import fetch, find_elsewhere, is_url
from fusetune.members.manifest import MANIFEST
from fusetune.members.member import INDEX, SINGLE, looks_like_member

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"(checkpoint|step|epoch)[-_]?\d+")

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Found:
    """Folders of members.

    Attributes:
        folders: In natural order of their names (checkpoint-9 before checkpoint-10), or in
            the order in which they were listed; each once.
        incomplete: Folders left out because their member.json was never written.
    """

    folders: tuple[Path, ...]
    incomplete: tuple[Path, ...]


def find_members(paths: Paths) -> Found:
    """Find the folders that `paths` means.

    Args:
        paths: A glob, a folder that contains members (a Trainer's output folder, a run
            folder or its `members/`), one member, a URL of these (see `fetch`), or a list of
            any. Names that begin with a dot are temporary and left out.

    Raises:
        MemberError: If a path does not exist or nothing is found.
    """
    given = _here([paths] if isinstance(paths, str | Path) else list(paths))
    folders: dict[Path, Path] = {}
    incomplete: dict[Path, Path] = {}
    for path in given:
        found = _expand(Path(path).expanduser())
        explicit = len(found) == 1 and found[0] == Path(path).expanduser()
        whole, partial = (found, []) if explicit else _without_incomplete(found)
        folders |= {p.resolve(): p for p in whole if p.resolve() not in folders}
        incomplete |= {p.resolve(): p for p in partial}
    for path in incomplete.values():
        logger.warning("%s is left out: it has no %s, so it is incomplete.", path, MANIFEST)
    if not folders:
        raise MemberError(
            f"No checkpoint in {', '.join(str(p) for p in given) or 'an empty list'}.",
            hint="Give folders with model.safetensors, a glob such as 'out/checkpoint-*', "
            "or the folder that contains them.",
        )
    return Found(tuple(folders.values()), tuple(incomplete.values()))


def _here(given: Sequence[str | Path]) -> list[str | Path]:
    """The same with copies of members that are elsewhere, in natural order of their URLs."""
    found: list[str | Path] = []
    for path in given:
        if isinstance(path, str) and is_url(path):
            urls = sorted(find_elsewhere(path), key=lambda url: natural(Path(url)))
            found += [fetch(url) for url in urls]
        else:
            found.append(path)
    return found


def natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    """A key that orders runs of digits by their number."""
    parts = re.split(r"([0-9]+)", str(path))
    return tuple((0, int(part)) if i % 2 else (1, part) for i, part in enumerate(parts))


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        return _inside(path)
    if path.is_file() and formats.looks_like(path):
        return [path]
    if path.exists():
        raise MemberError(
            f"{path} is a file; a checkpoint is a folder.", hint=f"Give {path.parent}."
        )
    if not glob.has_magic(str(path)):
        raise MemberError(f"{path} does not exist.", hint="Check the path.")
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    return _members(matches)


def _inside(folder: Path) -> list[Path]:
    """The members in a folder, or the folder itself if it is one."""
    if (folder / "members").is_dir() and not _has_weights(folder):
        return _inside(folder / "members")
    inside = _members(folder.iterdir())
    if looks_like_member(folder):
        # A Trainer's output folder has the last model beside its checkpoints; another
        # model's sub-folder (a sentence-transformers module) is no checkpoint.
        inside = [p for p in inside if CHECKPOINT.fullmatch(p.name)]
    return inside or [folder]


def _members(paths: Iterable[Path]) -> list[Path]:
    """Those that look like members, in natural order; single files where there is no folder.

    A file beside folders of checkpoints is anything, most often what a script left there.
    """
    found = sorted((p for p in paths if _visible(p) and looks_like_member(p)), key=natural)
    return [p for p in found if p.is_dir()] or found


def _without_incomplete(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Where some members of a parent folder have a manifest, those without are unfinished."""
    collected = {p.parent for p in folders if (p / MANIFEST).exists()}
    unfinished = [p for p in folders if p.parent in collected and not (p / MANIFEST).exists()]
    return [p for p in folders if p not in unfinished], unfinished


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _has_weights(path: Path) -> bool:
    return (path / SINGLE).exists() or (path / INDEX).exists()
