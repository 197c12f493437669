"""One small JSON per task × seed × method: what a protocol's runs found.

`gain` is the paired difference to `finetune` on test, in the primary metric, positive where the
method is better. Its bootstrap samples are kept, as 16-bit integers, so that several tasks and
seeds can be pooled later without the models.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RunError
from fusetune.members.disk import write_json

FOLDER = Path(__file__).resolve().parents[1] / "results"
LARGEST = 32767

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """What one method reached on one task with one seed.

    Attributes:
        protocol: "a" or "b".
        attempt: Name of the try, or "" for the protocol's own settings.
        task: As in the settings.
        seed: Of the run.
        method: The row.
        primary: The metric that decides.
        validation: Metric → value with its interval, "value", "low", "high".
        test: The same on test.
        gain: "value", "low", "high", "p_value", "variance" of the difference to `finetune`.
        samples: The difference on each bootstrap sample, as `encode` gives it.
        test_rows: Fingerprint of the test rows and labels.
        evaluations: Models evaluated on validation.
        trainings: All that the row needs.
        seconds: Of choosing.
        total_seconds: With search and training.
        settings: Overrides of the ready recipe.
        scale: "quick" or "full".
        command: That made it.
        version: Of fusetune.
    """

    protocol: str
    attempt: str
    task: str
    seed: int
    method: str
    primary: str
    validation: Mapping[str, Mapping[str, float]]
    test: Mapping[str, Mapping[str, float]]
    gain: Mapping[str, float]
    samples: Mapping[str, Any]
    test_rows: str
    evaluations: int
    trainings: int
    seconds: float
    total_seconds: float
    settings: tuple[str, ...]
    scale: str
    command: str
    version: str = field(default="")

    def differences(self) -> Array:
        """The difference to `finetune` on each bootstrap sample, `B`."""
        return decode(self.samples)

    def write(self, folder: Path) -> Path:
        """Write the record where `path` says."""
        file = path(folder, self.protocol, self.attempt, self.task, self.seed, self.method)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(self))
        return file


def path(folder: Path, protocol: str, attempt: str, task: str, seed: int, method: str) -> Path:
    """PROTOCOL/TASK-SEED-METHOD.json, under PROTOCOL/tries/NAME/ for a try."""
    place = folder / protocol / "tries" / attempt if attempt else folder / protocol
    return place / f"{task}-{seed}-{method.replace(':', '+')}.json"


def read_all(folder: Path) -> list[Record]:
    """Every record of every protocol, ordered by their names.

    Raises:
        RunError: If a file is no record.
    """
    return [read(file) for file in sorted(folder.glob("[ab]/**/*.json"))]


def read(file: Path) -> Record:
    """One record.

    Raises:
        RunError: If the file is no record.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        record = Record(**{**data, "settings": tuple(data["settings"])})
        record.differences()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{file} is no record of a result: {error}.", "Delete it and run its task again."
        ) from error
    return record


def encode(values: Array) -> dict[str, Any]:
    """Numbers as 16-bit integers and their unit; a relative error of 2e-5 of the largest."""
    unit = float(np.abs(values).max(initial=0.0)) / LARGEST or 1.0
    whole = np.round(values / unit).astype("<i2")
    return {"unit": unit, "int16": base64.b64encode(whole.tobytes()).decode("ascii")}


def decode(data: Mapping[str, Any]) -> Array:
    """The inverse of `encode`."""
    whole = np.frombuffer(base64.b64decode(data["int16"]), dtype="<i2")
    return whole.astype(np.float64) * float(data["unit"])
