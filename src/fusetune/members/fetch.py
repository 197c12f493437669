"""Members from elsewhere, as `s3://…`, `gs://…`, `abfs://…` or `hf://…`, copied here once.

A copy lies in a folder named by a digest of where it comes from and what was there (names,
sizes, and the store's own checksums or dates): members that change are fetched anew. Only the
files of a model are copied: no optimiser states, nothing pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from fusetune.errors import MemberError
from fusetune.members import formats
from fusetune.members.checkpoints.steps import is_numbered
from fusetune.members.companions import belongs_to_a_member
from fusetune.members.disk import locked, replaced_folder, require_space, write_json

CACHE = "FUSETUNE_CACHE"
"""Environment variable: where copies are kept; ~/.cache/fusetune by default."""

SCHEMES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "hf", "file", "memory")
"""Stores of files. fsspec knows many more, some of which open what a URL describes, or render
templates of it: a recipe could run code by a URL alone."""

SOURCE = "source.json"
ADAPTER = "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", ADAPTER)


def is_url(path: str | Path) -> bool:
    """Whether a member is elsewhere: a URL with a protocol."""
    return isinstance(path, str) and "://" in path


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The members that lie behind a URL.

    Attributes:
        members: URLs of folders, or of single files.
        left_out: URL of what looks like a checkpoint and is none → why.
    """

    members: tuple[str, ...]
    left_out: Mapping[str, str]


def find_elsewhere(url: str) -> Elsewhere:
    """The members that a URL means: a member, a folder of members, or a pattern.

    Args:
        url: As `s3://bucket/run/checkpoint-*`.

    Raises:
        MemberError: If it cannot be read, or nothing is there.
    """
    fs, root = _open(url)
    root = root.rstrip("/")
    found: list[str] = []
    left_out: dict[str, str] = {}
    try:
        if any(sign in root for sign in "*?["):
            candidates = [str(path) for path in fs.glob(root)]
        elif fs.isfile(root) or _folder_of(fs, root) == root:
            candidates = [root]
        else:
            candidates = [str(item["name"]) for item in fs.ls(root, detail=True)]
        for path in candidates:
            if PurePosixPath(path).name.startswith("."):
                continue
            if not fs.isdir(path):
                found += [path] if _is_single(path) else []
            elif folder := _folder_of(fs, path):
                found.append(folder)
            elif why := formats.lacks(PurePosixPath(path).name, _names(fs, path)):
                left_out[fs.unstrip_protocol(path.rstrip("/"))] = why
    except MemberError:
        raise
    except Exception as error:  # each store has its own
        raise _unreadable(url, error) from error
    if not found:
        listed = "".join(f"\n  {path} is left out: {why}" for path, why in left_out.items())
        raise MemberError(
            f"No checkpoint at {url}." + (listed and listed + "\n"),
            "Give a folder with model.safetensors, the folder that contains such folders, or "
            "a pattern.",
        )
    folders = [path for path in found if fs.isdir(path)]
    members = (fs.unstrip_protocol(path.rstrip("/")) for path in folders or found)
    return Elsewhere(tuple(members), left_out)


def fetch(url: str) -> Path:
    """A local copy of one member; what was fetched before is not fetched again.

    Safe against kills and against other processes that fetch the same.

    Raises:
        MemberError: If it cannot be read.
        StageError: If the disk has no room for it.
    """
    fs, root = _open(url)
    root = root.rstrip("/")
    try:
        there = {_inside(path, root): item for path, item in fs.find(root, detail=True).items()}
        files = {n: there[n] for n in sorted(there) if belongs_to_a_member(n)}
        marks = [(name, item["size"], fs.ukey(item["name"])) for name, item in files.items()]
        single = fs.isfile(root)
    except Exception as error:
        raise _unreadable(url, error) from error
    url = str(fs.unstrip_protocol(root))  # without credentials, if it had any
    digest = hashlib.sha256(json.dumps([url, marks], default=str).encode()).hexdigest()
    home = _cache() / digest[:32]
    place = PurePosixPath(root)
    named = not single and not is_numbered(place.name) and is_numbered(place.parent.name)
    # An adapter with a name keeps the checkpoint's folder around it, which has the number.
    local = f"{place.parent.name}/{place.name}" if named else place.name or "member"
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):
        if (home / SOURCE).is_file():
            return home / local
        require_space(home.parent, sum(int(item["size"]) for item in files.values()))
        with replaced_folder(home) as new:
            if not single:
                (new / local).mkdir(parents=True)
            for name, item in files.items():
                target = new / local if single else new / local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(fs, item, target, url)
            write_json(new / SOURCE, {"url": url})
    return home / local


def source_of(path: Path) -> str | None:
    """The URL of which a folder is the copy; None of any other folder."""
    for folder in (path.parent, path.parent.parent):
        try:
            url = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["url"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return url if isinstance(url, str) else None
    return None


def _open(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES or "::" in url:
        chained = "::" in url
        raise MemberError(
            f"{url} cannot be read: "
            + ("it is a chain of URLs (::)." if chained else f"Protocol not known: {scheme}."),
            "Give a URL of s3, gs, abfs, hf or file.",
        )
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise MemberError(f"{url}: {error}.", "Install the library that it names.") from error
    except Exception as error:
        raise _unreadable(url, error) from error
    fs.invalidate_cache()  # what was listed before may have changed
    return fs, str(root)


def _names(fs: Any, path: str) -> list[str]:
    return [_name(item) for item in fs.ls(path, detail=True)]


def _folder_of(fs: Any, path: str) -> str | None:
    """The folder itself if it has weights, or the one of the only adapter with a name in it."""
    inside = fs.ls(path, detail=True)
    names = [_name(item) for item in inside if item["type"] == "file"]
    if any(name in WEIGHTS for name in names):
        return path
    number = is_numbered(PurePosixPath(path).name)
    if number and len([name for name in names if _is_single(name)]) == 1:
        return path
    folders = [str(item["name"]) for item in inside if item["type"] == "directory" and number]
    adapters = [folder for folder in folders if ADAPTER in _names(fs, folder)]
    return adapters[0] if len(adapters) == 1 else None


def _is_single(name: str) -> bool:
    """Whether a file is a model by itself, by its name."""
    name = PurePosixPath(name).name
    return name.endswith(formats.SAFETENSORS) and not formats.BESIDE.match(name)


def _copy(fs: Any, item: Mapping[str, Any], target: Path, url: str) -> None:
    try:
        fs.get_file(item["name"], str(target))
        size = target.stat().st_size
    except OSError as error:
        raise _unreadable(url, error) from error
    if size != item["size"]:
        raise MemberError(
            f"{url}/{target.name} came with {size} bytes in the place of {item['size']}.",
            "Fetch again: run the same command.",
        )


def _inside(path: str, root: str) -> str:
    """A file's name relative to what was listed, which it never leads out of."""
    parts = PurePosixPath(path.removeprefix(root) or PurePosixPath(root).name).parts
    return "/".join(part for part in parts if part not in ("/", ".", ".."))


def _name(item: Mapping[str, Any]) -> str:
    """The last part of a path: never one that leads out of a folder."""
    return PurePosixPath(str(item["name"])).name


def _cache() -> Path:
    given = os.environ.get(CACHE)
    if given:
        return Path(given) / "members"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fusetune" / "members"


def _unreadable(url: str, error: Exception) -> MemberError:
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    return MemberError(
        f"{url} cannot be read: {type(error).__name__}: {reason}.",
        "Check the URL, as s3://bucket/folder, and that this machine may read it.",
    )
