"""An evaluation on disk that is damaged, or of something else, counts as none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.store import EvaluationStore, spent
from fusetune.members.weights import FusionWeights
from fusetune.tasks.task import Outputs

W = FusionWeights((0.5, 0.5))
OUTPUTS = Outputs(
    np.ones(3, np.float32), np.ones((3, 2), np.float32), ("a", "b", "c"),
    tuple(np.ones(n, np.float32) for n in (1, 2, 3)),
)  # fmt: skip

CHANGES: dict[str, dict[str, Any]] = {
    "cost is a number": {"cost": np.array(1.0)},
    "cost is short": {"cost": np.ones(2)},
    "cost is text": {"cost": np.array(["a", "b", "c"])},
    "cost is no number": {"cost": np.array([np.nan, 0.0, 0.0])},
    "cost is infinite": {"cost": np.array([0.0, 0.0, np.inf])},
    "loss of too few": {"loss": np.ones(2, np.float32)},
    "loss of text": {"loss": np.array(["a", "b", "c"])},
    "loss in two dimensions": {"loss": np.ones((3, 1), np.float32)},
    "predictions of too many": {"predictions": np.ones((4, 2), np.float32)},
    "predictions in one dimension": {"predictions": np.ones(3, np.float32)},
    "names of numbers": {"names": np.ones(2)},
    "names and values differ": {"values": np.ones(5)},
    "values of text": {"values": np.array(["a", "b"])},
    "values of another shape": {"values": np.ones((2, 2))},
    "texts are no packed texts": {"texts": np.zeros(9, np.uint8)},
    "lengths with a half": {"lengths": np.array([0.5, 1.0, 1.0])},
    "lengths of two": {"lengths": np.array([1, 2])},
    "lengths are one number": {"lengths": np.array(7)},
}


def stored(folder: Path) -> Path:
    store = EvaluationStore(folder, "context", names=["loss", "f1"], rows=3)
    store.put(W, Evaluation({"loss": 1.0, "f1": 0.5}, OUTPUTS, 2.0, 1.0, 10))
    (file,) = folder.glob("*.npz")
    return file


def again(folder: Path, **more: Any) -> Evaluation | None:
    return EvaluationStore(folder, "context", names=["loss", "f1"], **more).get(W)


def test_a_whole_one_is_found(tmp_path: Path) -> None:
    stored(tmp_path)
    found = again(tmp_path, rows=3)
    assert found is not None
    assert dict(found.values) == {"loss": 1.0, "f1": 0.5}
    assert again(tmp_path, rows=4) is None  # of another split
    assert spent(tmp_path).evaluations == 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_one_counts_as_none(change: str, tmp_path: Path) -> None:
    file = stored(tmp_path)
    with np.load(file) as saved:
        content = dict(saved)
    np.savez(file, **(content | CHANGES[change]))
    assert again(tmp_path, rows=3) is None
    if "cost" in change:
        assert spent(tmp_path).evaluations == 0


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -30])
def test_a_torn_one_counts_as_none(keep: int, tmp_path: Path) -> None:
    file = stored(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    assert again(tmp_path) is None
    assert spent(tmp_path).evaluations == 0
    for size in range(0, 600, 7):
        file.write_bytes(bytes((i * 37 + size) % 256 for i in range(size)))
        assert again(tmp_path) is None
