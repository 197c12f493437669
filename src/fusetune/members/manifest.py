"""member.json: written last into a member's folder, so that its existence means complete."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusetune.errors import MemberError
from fusetune.files.record import regular
from fusetune.members.disk import file_sha256, sync, write_json

MANIFEST = "member.json"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be: its sha256 (hexadecimal) and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where in the training a member was taken, and what its weight files are.

    Attributes:
        step: Optimiser steps done.
        epoch: The same in passes over the training data; None if not known.
        files: File name → record, for every weight file and shard index.
        values: Validation values measured while training, if any; NaN where JSON has null.
        trajectory: Number of the training run, from 1; None where there is only one.
        base: Of an adapter, the sha256 of the base model's weights; see `base.base_sha256`.
    """

    step: int
    epoch: float | None
    files: Mapping[str, FileRecord]
    values: Mapping[str, float] = field(default_factory=dict)
    trajectory: int | None = None
    base: str | None = None


def write_manifest(
    folder: str | Path,
    *,
    step: int,
    epoch: float | None,
    values: Mapping[str, float] | None = None,
    trajectory: int | None = None,
    base: str | None = None,
) -> Manifest:
    """Hash the weight files of a folder, wait until they are on the disk, declare it complete.

    Args:
        folder: Holds `*.safetensors` and, if sharded, their index.
        step: Optimiser steps done.
        epoch: The same in passes over the training data, if known.
        values: Validation values; those that are not finite are stored as null.
        trajectory: Number of the training run, from 1, where there are several.
        base: Of an adapter, the sha256 of the base model's weights.

    Raises:
        ValueError: If the folder has no weight file.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors")) + sorted(
        folder.glob("*.safetensors.index.json")
    )
    if not weights:
        raise ValueError(f"{folder} has no safetensors file to declare complete.")
    for path in folder.iterdir():
        sync(path)
    files = {p.name: FileRecord(file_sha256(p), p.stat().st_size) for p in weights}
    passes = None if epoch is None else float(epoch)
    manifest = Manifest(int(step), passes, files, dict(values or {}), trajectory, base)
    write_json(folder / MANIFEST, _json(manifest))
    return manifest


def assign_trajectory(folder: str | Path, trajectory: int | None) -> None:
    """Give a complete member's manifest the number of its training run, atomically.

    Raises:
        MemberError: If the folder has no manifest that can be understood.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise MemberError(f"{folder} has no {MANIFEST}, so it is incomplete.")
    if manifest.trajectory != trajectory:
        write_json(folder / MANIFEST, _json(replace(manifest, trajectory=trajectory)))


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of a member's folder, or None if it has none.

    Raises:
        MemberError: If there is one that cannot be understood.
    """
    path = Path(folder) / MANIFEST
    try:
        regular(path)
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    try:
        return _parse(json.loads(text))
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise _unreadable(path, error) from error


def _json(manifest: Manifest) -> dict[str, Any]:
    data: dict[str, Any] = {
        "step": manifest.step,
        "epoch": manifest.epoch,
        "files": {n: {"sha256": r.sha256, "bytes": r.bytes} for n, r in manifest.files.items()},
        "values": {
            name: float(value) if math.isfinite(value) else None
            for name, value in manifest.values.items()
        },
    }
    if manifest.trajectory is not None:
        data["trajectory"] = manifest.trajectory
    if manifest.base is not None:
        data["base"] = manifest.base
    return data


def _parse(raw: Mapping[str, Any]) -> Manifest:
    if outside := [name for name in raw["files"] if Path(name).name != name or "\0" in name]:
        raise ValueError(f"a file outside of the folder, {outside[0]!r}")
    values = raw.get("values") or {}
    trajectory, epoch = raw.get("trajectory"), raw["epoch"]
    return Manifest(
        step=int(raw["step"]),
        epoch=None if epoch is None else float(epoch),
        files={
            str(name): FileRecord(str(record["sha256"]), int(record["bytes"]))
            for name, record in raw["files"].items()
        },
        values={str(n): math.nan if v is None else float(v) for n, v in values.items()},
        trajectory=None if trajectory is None else int(trajectory),
        base=raw.get("base"),
    )


def _unreadable(path: Path, error: Exception) -> MemberError:
    return MemberError(
        f"{path} is not a member's manifest: {type(error).__name__}: {error}.",
        hint="Remove this member's folder, or restore the file.",
    )
