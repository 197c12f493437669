"""What a run was computed with: versions, device, seeds, fingerprints of data and model."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusetune.errors import RunError
from fusetune.files.record import mapping, read_record
from fusetune.members.disk import write_json
from fusetune.redaction import tree_without_secrets

if TYPE_CHECKING:
    from fusetune.pipeline.context import Context

PACKAGES = (
    "fusetune",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "optuna",
    "botorch",
    "gpytorch",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "peft",
)


ADVICE = "It says which data the run began with; remove it if you know that they are the same."


def package_version(name: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def write_environment(context: Context) -> None:
    """Write environment.json into the run folder."""
    write_json(_file(context), environment(context))


def changed_data(context: Context) -> str:
    """Which splits are not those that the run of the folder began with, and in what; or "".

    Nothing is known of a folder that has no environment.json.

    Raises:
        RunError: If that file is damaged.
    """
    rows = read_record(_file(context), _rows, ADVICE)
    if rows is None:
        return ""
    now = {name: (data["rows"], data["sha256"]) for name, data in _data(context).items()}
    changed = []
    for name in dict.fromkeys([*rows, *now]):
        if rows.get(name) != now.get(name):
            old, new = (str(of[name][0]) if name in of else "no" for of in (rows, now))
            same = f"{new} rows as before, other content"
            changed.append(f"{name} ({same if old == new else f'{old} rows → {new} rows'})")
    return ", ".join(changed)


def require_same_data(context: Context) -> None:
    """Check that the data are those that the run of the folder began with.

    Raises:
        RunError: If not.
    """
    if changed := changed_data(context):
        raise RunError(
            f"The data have changed since the run in {context.folder.path} began: {changed}. "
            "Its stages would be of different data.",
            "Put the former data back, or start anew: with --force, or in another folder.",
        )


def _rows(content: Any) -> dict[str, tuple[int, str]]:
    """Rows and digest of each split in an environment.json."""
    data = mapping(mapping(content)["data"])
    return {name: (int(split["rows"]), str(split["sha256"])) for name, split in data.items()}


def _file(context: Context) -> Path:
    return context.folder.path / "environment.json"


def _data(context: Context) -> dict[str, dict[str, Any]]:
    return {
        split: {"rows": len(rows), "sha256": rows.fingerprint}
        for split, rows in context.task.splits.items()
    }


def environment(context: Context) -> dict[str, Any]:
    """The content of environment.json."""
    device = context.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
        "precision": context.precision,
        "seed": context.recipe.seed,
        "model": context.source.label,
        "trust_remote_code": context.recipe.model.trust_remote_code,
        "data": _data(context),
        "versions": {package: package_version(package) for package in PACKAGES},
    }
    shown: dict[str, Any] = tree_without_secrets(found)
    return shown
