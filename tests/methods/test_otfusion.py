"""On members whose units changed places, the first of which labelled the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusetune.errors import StageError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.executors.serial import SerialExecutor
from fusetune.members.points import OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import available, find
from fusetune.methods.method import FusionResult
from fusetune.methods.otfusion import otfusion
from fusetune.methods.swa import swa
from fusetune.optimization.storage import open_storage
from fusetune.optimization.study import Loop

Problem = Callable[..., tuple[MemberPool, Evaluator]]
LAYER = "bert.encoder.layer.0."


def swap_neurons(tensors: dict[str, Tensor]) -> None:
    """Neurons 0 and 5, and heads 0 and 1, of the first layer."""
    for end in ("weight", "bias"):
        tensors[f"{LAYER}intermediate.dense.{end}"][[0, 5]] = tensors[
            f"{LAYER}intermediate.dense.{end}"
        ][[5, 0]]
        for name in ("query", "key", "value"):
            rows = tensors[f"{LAYER}attention.self.{name}.{end}"]
            rows.copy_(rows.roll(4, 0))
    columns = tensors[f"{LAYER}output.dense.weight"]
    columns[:, [0, 5]] = columns[:, [5, 0]]
    columns = tensors[f"{LAYER}attention.output.dense.weight"]
    columns.copy_(columns.roll(4, 1))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., FusionResult]:
    def call(pool: MemberPool, evaluator: Evaluator, **options: float) -> FusionResult:
        loop = Loop(open_storage(f"sqlite:///{tmp_path / 's.db'}"), SerialExecutor())
        return otfusion(pool, evaluator, budget=5, seed=0, loop=loop, **options)

    return call


def test_it_is_a_method() -> None:
    assert "otfusion" in available()
    assert find("otfusion") is otfusion


def test_members_in_other_orders(bert: Problem, run: Callable[..., FusionResult]) -> None:
    pool, evaluator = bert([0.0, 0.0, 0.0])
    edit(pool.members[2].path, swap_neurons)
    pool = MemberPool.of([member.path for member in pool.members])
    result = run(pool, evaluator)
    assert isinstance(result.point, OwnModel)
    for name, tensor in result.point.tensors.items():
        assert torch.equal(tensor, pool.load_tensor(0, name)), name
    first = evaluator(FusionWeights.one_hot(0, 3))
    assert dict(result.values) == dict(first.values)
    assert result.evaluations == 1
    assert result.seconds > evaluator(result.point).seconds  # the aligning counts
    neurons, heads = result.details["neurons"], result.details["heads"]
    assert (neurons["units"], neurons["moved"]) == (24, [0, 2])
    assert (heads["units"], heads["moved"]) == (4, [0, 2])
    for kind in (neurons, heads):
        assert kind["distance_before"][0] == 0.0 < kind["distance_before"][1]
        assert kind["distance_after"] == [0.0, 0.0]
    assert result.details["reference"] == "step-1"
    assert "notes" not in result.details
    json.dumps(result.details, allow_nan=False)


def test_members_in_place_give_the_uniform_average(
    bert: Problem, run: Callable[..., FusionResult]
) -> None:
    pool, evaluator = bert([0.0, 0.05, 0.05])
    result = run(pool, evaluator)
    assert result.point == FusionWeights.uniform(3)
    assert result.details["neurons"]["moved"] == result.details["heads"]["moved"] == [0, 0]
    assert min(result.details["neurons"]["distance_before"]) > 0.0
    assert "otfusion is the uniform average" in result.details["notes"][0]
    rival = swa(pool, evaluator.fresh(), budget=5, seed=0, loop=None)
    assert dict(rival.values) == dict(result.values)


def test_soft_plans_leave_the_simplex(bert: Problem, run: Callable[..., FusionResult]) -> None:
    pool, evaluator = bert([0.0, 0.1])
    result = run(pool, evaluator, regularisation=0.1)
    assert isinstance(result.point, OwnModel)
    assert np.isfinite(list(result.values.values())).all()


def test_a_member_that_diverged_spoils_the_result_but_not_the_run(
    bert: Problem, run: Callable[..., FusionResult]
) -> None:
    pool, evaluator = bert([0.0, 0.1])

    def diverge(tensors: dict[str, Tensor]) -> None:
        tensors[f"{LAYER}intermediate.dense.weight"].fill_(torch.nan)

    edit(pool.members[1].path, diverge)
    result = run(MemberPool.of([member.path for member in pool.members]), evaluator)
    assert result.details["neurons"]["distance_after"] == [None]
    json.dumps(result.details, allow_nan=False)


def test_unsupported_members(linear: Problem, run: Callable[..., FusionResult]) -> None:
    rng = np.random.default_rng(0)
    pool, evaluator = linear(
        rng.normal(size=(2, 2, 3)), rng.normal(size=(8, 3)), np.array([0, 1] * 4)
    )
    with pytest.raises(StageError, match=r"BERT, RoBERTa, .*this model, linear, has no layers"):
        run(pool, evaluator)
    assert evaluator.evaluations == 0
