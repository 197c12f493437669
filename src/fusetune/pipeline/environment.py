"""What a run was computed with: versions, device, seeds, fingerprints of data and model."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

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


def package_version(name: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


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
        "data": {
            split: {"rows": len(rows), "sha256": rows.fingerprint}
            for split, rows in context.task.splits.items()
        },
        "versions": {package: package_version(package) for package in PACKAGES},
    }
    shown: dict[str, Any] = tree_without_secrets(found)
    return shown
