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
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from fusetune.errors import MemberError
from fusetune.members.disk import locked, replaced_folder, require_space, write_json

CACHE = "FUSETUNE_CACHE"
"""Environment variable: where copies are kept; ~/.cache/fusetune by default."""

SCHEMES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "hf", "file", "memory")
"""Stores of files. fsspec knows many more, some of which open what a URL describes, or render
templates of it: a recipe could run code by a URL alone."""

SOURCE = "source.json"
ENDINGS = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def is_url(path: str | Path) -> bool:
    """Whether a member is elsewhere: a URL with a protocol."""
    return isinstance(path, str) and "://" in path


def find_elsewhere(url: str) -> list[str]:
    """The folders of members that a URL means: a member, a folder of members, or a pattern.

    Args:
        url: As `s3://bucket/run/checkpoint-*`.

    Raises:
        MemberError: If it cannot be read, or nothing is there.
    """
    fs, root = _open(url)
    root = root.rstrip("/")
    try:
        if any(sign in root for sign in "*?["):
            candidates = [str(path) for path in fs.glob(root)]
        else:
            inside = fs.ls(root, detail=True)
            here = [_name(item) for item in inside if item["type"] == "file"]
            if any(name in WEIGHTS for name in here):
                return [str(fs.unstrip_protocol(root))]
            candidates = [item["name"] for item in inside if item["type"] == "directory"]
        found = [path for path in candidates if _has_weights(fs, path)]
    except MemberError:
        raise
    except Exception as error:  # each store has its own
        raise _unreadable(url, error) from error
    if not found:
        raise MemberError(
            f"No checkpoint at {url}.",
            "Give a folder with model.safetensors, the folder that contains such folders, or "
            "a pattern.",
        )
    return [fs.unstrip_protocol(path.rstrip("/")) for path in found]


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
        files = {
            _name(item): item
            for item in sorted(fs.ls(root, detail=True), key=lambda item: str(item["name"]))
            if item["type"] == "file" and _name(item).endswith(ENDINGS)
        }
        marks = [(name, item["size"], fs.ukey(item["name"])) for name, item in files.items()]
    except Exception as error:
        raise _unreadable(url, error) from error
    url = str(fs.unstrip_protocol(root))  # without credentials, if it had any
    digest = hashlib.sha256(json.dumps([url, marks], default=str).encode()).hexdigest()
    home = _cache() / digest[:32]
    member = home / (PurePosixPath(root).name or "member")
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):
        if (home / SOURCE).is_file():
            return member
        require_space(home.parent, sum(int(item["size"]) for item in files.values()))
        with replaced_folder(home) as new:
            (new / member.name).mkdir()
            for name, item in files.items():
                _copy(fs, item, new / member.name / name, url)
            write_json(new / SOURCE, {"url": url})
    return member


def source_of(path: Path) -> str | None:
    """The URL of which a folder is the copy; None of any other folder."""
    try:
        found = json.loads((path.parent / SOURCE).read_text(encoding="utf-8"))
        url = found["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


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


def _has_weights(fs: Any, path: str) -> bool:
    if not fs.isdir(path) or PurePosixPath(path).name.startswith("."):
        return False
    return any(_name(item) in WEIGHTS for item in fs.ls(path, detail=True))


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
