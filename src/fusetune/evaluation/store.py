"""What was evaluated, on disk: no w is ever evaluated twice on the same split."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.evaluation import Evaluation
from fusetune.members.disk import link
from fusetune.members.points import Point, key
from fusetune.tasks.task import Outputs

DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that NumPy and its parsers raise for a file that holds no whole evaluation."""


class EvaluationStore:
    """Per-example outcomes of evaluations, one small file each.

    Args:
        folder: Where the files go; None keeps them in memory only.
        context: Fingerprints of members, split, device and precision: an evaluation of
            other members or other data is never taken for one of these.
        others: Folders of other runs; what they know is taken over, and its cost with it.
        names: The objectives, of which an evaluation must have the values; one that was made
            with other metrics counts as none. All values, whatever they are, if empty.
        rows: Examples of the split; outcomes of another number count as none. Any if None.
    """

    def __init__(
        self,
        folder: Path | None,
        context: str,
        others: Sequence[Path] = (),
        names: Sequence[str] = (),
        rows: int | None = None,
    ) -> None:
        self.folder = folder
        self.context = context
        self.others = tuple(others)
        self.names = tuple(names)
        self.rows = rows
        self._known: dict[Point, Evaluation] = {}

    def get(self, point: Point) -> Evaluation | None:
        """The evaluation of a point if there is one; a damaged file counts as none."""
        if point in self._known:
            return self._known[point]
        path = self._path(point)
        if path is None:
            return None
        for folder in () if path.is_file() else self.others:
            if (folder / path.name).is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                link(folder / path.name, path)
                break
        try:
            with np.load(path, allow_pickle=False) as saved:
                outputs = Outputs(
                    saved["loss"],
                    saved["predictions"],
                    _texts(saved["texts"]) if "texts" in saved else None,
                    _ragged(saved) if "log_probs" in saved else None,
                )
                values = dict(
                    zip(saved["names"].tolist(), saved["values"].tolist(), strict=True)
                )
                seconds, averaging, read = _cost(saved)
                values = {name: float(values[name]) for name in self.names or values}
            self._check(outputs)
        except DAMAGED:
            return None  # not there, damaged, or of other metrics
        evaluation = Evaluation(values, outputs, seconds, averaging, int(read))
        self._known[point] = evaluation
        return evaluation

    def _check(self, outputs: Outputs) -> None:
        """Check that outcomes are those of the split's examples.

        Raises:
            ValueError: If not.
        """
        n = self.rows if self.rows is not None else len(outputs.loss)
        parts: list[Sequence[Any] | NDArray[Any]] = [outputs.loss, outputs.predictions]
        parts += [part for part in (outputs.texts, outputs.log_probs) if part is not None]
        numbers = outputs.loss.dtype.kind == outputs.predictions.dtype.kind == "f"
        shaped = outputs.loss.ndim == 1 and outputs.predictions.ndim == 2
        if not (numbers and shaped) or any(len(part) != n for part in parts):
            raise ValueError(f"These are not the outcomes of {n} examples.")

    def put(self, point: Point, evaluation: Evaluation) -> None:
        """Remember an evaluation, durably if it has per-example outcomes."""
        self._known[point] = evaluation
        path = self._path(point)
        if path is None or evaluation.outputs is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = _arrays(evaluation.outputs)
        # Columns of text metrics are mostly small counts and zeros, logits are not.
        save = np.savez if evaluation.outputs.texts is None else np.savez_compressed
        save(
            buffer,
            **arrays,
            names=np.array(list(evaluation.values)),
            values=np.array(list(evaluation.values.values()), dtype=np.float64),
            cost=np.array([evaluation.seconds, evaluation.averaging, float(evaluation.read)]),
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)

    def _path(self, point: Point) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(self.context.encode())
        digest.update(key(point))
        return self.folder / f"{digest.hexdigest()[:32]}.npz"


def _arrays(outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Outcomes as arrays; texts are compressed, ragged arrays laid end to end."""
    found: dict[str, NDArray[Any]] = {
        "loss": outputs.loss,
        "predictions": outputs.predictions,
    }
    if outputs.texts is not None:
        packed = zlib.compress(json.dumps(outputs.texts).encode())
        found["texts"] = np.frombuffer(packed, dtype=np.uint8)
    if outputs.log_probs is not None:
        found["log_probs"] = np.concatenate(outputs.log_probs)
        found["lengths"] = np.array([len(part) for part in outputs.log_probs])
    return found


def _texts(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    found = json.loads(zlib.decompress(packed.tobytes()))
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError("texts are a list of texts")
    return tuple(found)


def _cost(saved: Mapping[str, NDArray[Any]]) -> tuple[float, float, int]:
    """Seconds of evaluating and of averaging, and bytes read."""
    seconds, averaging, read = saved["cost"].tolist()
    found = float(seconds), float(averaging), float(read)
    if not all(math.isfinite(number) and number >= 0.0 for number in found):
        raise ValueError("costs are numbers from 0")
    return found[0], found[1], int(read)


def _ragged(saved: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], ...]:
    return tuple(np.split(saved["log_probs"], np.cumsum(saved["lengths"])[:-1]))


@dataclass(frozen=True, slots=True)
class Spent:
    """What all evaluations of a folder cost, whichever process made them.

    Attributes:
        evaluations: How many there are.
        averaging: Seconds of averaging.
        evaluating: Seconds of running models.
        read: Bytes that averaging read.
    """

    evaluations: int
    averaging: float
    evaluating: float
    read: int


def spent(folder: Path) -> Spent:
    """Add up the evaluations of a folder; damaged files count as none."""
    costs = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as saved:
                costs.append(_cost(saved))
        except DAMAGED:
            continue
    seconds, averaging, read = np.sum(costs, axis=0) if costs else (0.0, 0.0, 0.0)
    return Spent(len(costs), float(averaging), float(seconds - averaging), int(read))
