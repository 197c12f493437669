from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.store import EvaluationStore, Spent, spent
from fusetune.members.weights import FusionWeights
from fusetune.tasks.task import Outputs

W = FusionWeights((0.25, 0.75))


def evaluation() -> Evaluation:
    random = np.random.default_rng(0)
    loss = random.random(7, dtype=np.float32)
    outputs = Outputs(loss, random.random((7, 2), dtype=np.float32))
    return Evaluation({"loss": 0.1 + 0.2, "accuracy": 1 / 3}, outputs, 0.5)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    EvaluationStore(tmp_path, "members, split").put(W, evaluation())
    found = EvaluationStore(tmp_path, "members, split").get(W)
    assert found is not None
    assert found.outputs is not None
    expected = evaluation()
    assert expected.outputs is not None
    assert found.values == expected.values
    assert found.seconds == 0.5
    assert np.array_equal(found.outputs.loss, expected.outputs.loss)
    assert np.array_equal(found.outputs.predictions, expected.outputs.predictions)


def test_other_weights_or_another_context_are_unknown(tmp_path: Path) -> None:
    EvaluationStore(tmp_path, "members, split").put(W, evaluation())
    assert EvaluationStore(tmp_path, "members, split").get(FusionWeights((0.5, 0.5))) is None
    assert EvaluationStore(tmp_path, "members, other split").get(W) is None


def test_a_file_that_a_kill_cut_off_counts_as_none(tmp_path: Path) -> None:
    EvaluationStore(tmp_path, "x").put(W, evaluation())
    (path,) = tmp_path.glob("*.npz")
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert EvaluationStore(tmp_path, "x").get(W) is None
    EvaluationStore(tmp_path, "x").put(W, evaluation())
    assert EvaluationStore(tmp_path, "x").get(W) is not None


def test_what_another_run_evaluated_is_taken_over_with_its_cost(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    EvaluationStore(other, "x").put(W, evaluation())
    nothing = tmp_path / "nothing"
    assert EvaluationStore(own, "y", [nothing, other]).get(W) is None
    assert not own.exists()
    found = EvaluationStore(own, "x", [nothing, other]).get(W)
    assert found is not None
    assert (found.values, found.seconds) == (evaluation().values, 0.5)
    assert spent(own) == spent(other)
    (file,) = other.iterdir()
    file.unlink()
    assert EvaluationStore(own, "x").get(W) is not None


def test_an_evaluation_by_other_metrics_is_none(tmp_path: Path) -> None:
    EvaluationStore(tmp_path, "x").put(W, evaluation())
    fewer, *others = evaluation().values
    found = EvaluationStore(tmp_path, "x", names=[fewer]).get(W)
    assert found is not None
    assert found.values == {fewer: evaluation().values[fewer]}
    assert EvaluationStore(tmp_path, "x", names=[fewer, "brier"]).get(W) is None
    more = dataclasses.replace(evaluation(), values={**evaluation().values, "brier": 0.2})
    EvaluationStore(tmp_path, "x", names=[fewer, "brier"]).put(W, more)
    found = EvaluationStore(tmp_path, "x", names=[fewer, *others]).get(W)
    assert found is not None
    assert found.values == evaluation().values


def test_in_memory_only() -> None:
    store = EvaluationStore(None, "x")
    store.put(W, Evaluation({"loss": 1.0}, None, 0.0))
    found = store.get(W)
    assert found is not None
    assert found.values == {"loss": 1.0}


def test_what_evaluations_cost_is_added_up_over_processes(tmp_path: Path) -> None:
    assert spent(tmp_path / "none") == Spent(0, 0.0, 0.0, 0)
    first = dataclasses.replace(evaluation(), seconds=2.0, averaging=0.5, read=100)
    EvaluationStore(tmp_path, "validation").put(W, first)
    second = dataclasses.replace(evaluation(), seconds=1.0, averaging=0.25, read=50)
    EvaluationStore(tmp_path, "test").put(W, second)
    found = EvaluationStore(tmp_path, "test").get(W)
    assert found is not None
    assert (found.seconds, found.averaging, found.read) == (1.0, 0.25, 50)
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    assert spent(tmp_path) == Spent(2, 0.75, 2.25, 150)
