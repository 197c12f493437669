"""`layers` on networks whose groups of layers want different members."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.executors.serial import SerialExecutor
from fusetune.members.average import ResidentAverage
from fusetune.members.layers import LayerWeights
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import available, find
from fusetune.methods.layers import layers
from fusetune.methods.method import FusionResult
from fusetune.methods.mobo import mobo
from fusetune.objective import LOSS, Objective
from fusetune.optimization.storage import open_storage
from fusetune.optimization.study import Loop

Problem = Callable[..., tuple[MemberPool, Evaluator]]
SCORE = Objective("score", "maximize")
SOURCES = [0, 1, 2]  # the member that embeddings, layer and head come from


class Net(nn.Module):
    """Nothing but parameters, called as those of a transformer are."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Linear(4, 4, bias=False)
        self.layer = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.classifier = nn.Linear(4, 4, bias=False)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for one w, which is tested elsewhere, ends soon after its starting points."""
    torch.set_num_threads(1)
    monkeypatch.setattr(importlib.import_module("fusetune.methods.layers"), "GLOBAL", 0.25)


@pytest.fixture
def quadratic(tmp_path: Path) -> Callable[..., tuple[MemberPool, Evaluator, list[int]]]:
    """The loss is the distance to a network whose layers come from different members.

    Args of the function: the member that each tensor comes from; after how many evaluations
    to be killed. The last of what it gives counts evaluations.
    """
    generator = torch.Generator().manual_seed(3)
    names = list(Net().state_dict())
    states = [
        {name: torch.randn(4, 4, generator=generator) for name in names} for _ in range(3)
    ]
    for i, state in enumerate(states):
        folder = tmp_path / "net" / f"step-{i}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "net"}))

    def build(
        sources: list[int], killed_after: int = 10**6
    ) -> tuple[MemberPool, Evaluator, list[int]]:
        wanted = {n: states[i][n] for n, i in zip(names, sources, strict=True)}
        count = [0]

        def score(model: nn.Module) -> Evaluation:
            count[0] += 1
            if count[0] > killed_after:
                raise Killed
            parts = [(t - wanted[n]).square().mean() for n, t in model.state_dict().items()]
            loss = float(torch.stack(parts).sum())
            return Evaluation({"loss": loss, "score": -loss}, None, 0.01)

        pool = MemberPool.open(tmp_path / "net")
        net = Net()
        average = ResidentAverage(pool, net)
        store = EvaluationStore(None, "test")
        return pool, Evaluator(average, net, score, (LOSS, SCORE), store), count

    return build


def test_it_is_a_method() -> None:
    assert "layers" in available()
    assert "steps" not in available()
    assert find("layers") is layers


def solve(pool: MemberPool, evaluator: Evaluator, loop: Loop, budget: int = 18) -> FusionResult:
    return layers(pool, evaluator, budget=budget, seed=0, loop=loop, prior=False, parts=1)


def test_it_finds_what_no_single_w_can(quadratic: Callable[..., Any]) -> None:
    pool, evaluator, _ = quadratic(SOURCES)
    alone = mobo(pool, evaluator, budget=18, seed=0, loop=Loop.in_memory(), prior=False)
    pool, evaluator, count = quadratic(SOURCES)
    loop = Loop.in_memory()
    found = solve(pool, evaluator, loop)
    assert isinstance(found.point, LayerWeights)
    assert found.values["loss"] < 0.6 * alone.values["loss"]
    assert found.values == evaluator(found.point).values
    assert found.evaluations == count[0] <= 18
    assert found.details["accepted"] is True
    assert found.details["p_value"] is None

    # Whether `mobo` ran before, and longer, makes no difference but in cost.
    pool, evaluator, count = quadratic(SOURCES)
    mobo(pool, evaluator, budget=7, seed=0, loop=(loop := Loop.in_memory()), prior=False)
    before = count[0]
    again = solve(pool, evaluator.fresh(), loop)
    assert again.point == found.point
    assert again.evaluations == found.evaluations
    assert count[0] - before <= 14


def test_killed_and_started_again(quadratic: Callable[..., Any], tmp_path: Path) -> None:
    def run(name: str, killed_after: int = 10**6) -> FusionResult:
        pool, evaluator, _ = quadratic(SOURCES, killed_after)
        loop = Loop(open_storage(tmp_path / name), SerialExecutor())
        return solve(pool, evaluator, loop)

    whole = run("whole.journal")
    # In the global search; then, all of it being stored, among the finer weights. What was
    # evaluated is lost each time: the store is in memory.
    for after in (2, 7, 8):
        with pytest.raises(Killed):
            run("cut.journal", after)
    again = run("cut.journal")
    assert again.point == whole.point
    assert again.details["step"] == whole.details["step"]


def test_a_budget_too_small_keeps_one_w(quadratic: Callable[..., Any]) -> None:
    pool, evaluator, count = quadratic(SOURCES)
    found = solve(pool, evaluator, Loop.in_memory(), budget=8)
    assert isinstance(found.point, FusionWeights)
    assert count[0] <= 8
    assert "too few for 3 groups of layers" in found.details["notes"][0]


def test_a_gain_inside_the_noise_is_not_taken(bert: Problem) -> None:
    """60 rows, members of one kind: whatever is gained is luck."""
    pool, evaluator = bert([0.2, 0.2, 0.2])
    found = layers(pool, evaluator, budget=18, seed=0, loop=Loop.in_memory(), parts=1)
    assert found.details["accepted"] is False
    assert found.details["p_value"] >= 0.05
    assert isinstance(found.point, FusionWeights)
    assert "inside the noise" in found.details["notes"][0]
    finer = found.choices["finer"]
    assert isinstance(finer.point, LayerWeights)
    assert finer.values == evaluator(finer.point).values
    members = [evaluator(FusionWeights.one_hot(i, 3)).values["accuracy"] for i in range(3)]
    assert found.values["accuracy"] >= max(members)
    back = FusionResult.from_json(json.loads(json.dumps(found.to_json())))
    assert back.choices["finer"].point == finer.point
    assert dataclasses.replace(back, choices={}).point == found.point


def test_a_gain_beyond_the_noise_is_taken(bert: Problem) -> None:
    """Two members, each far off in one group of layers and right in the others."""
    pool, evaluator = bert([0.0, 0.0])
    rng = np.random.default_rng(0)
    parts = (("embeddings",), ("pooler", "classifier"))
    right = {n: pool.load_tensor(0, n).clone() for n in pool.tensors}
    for member, bad in zip(pool.members, parts, strict=True):
        file = member.path / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in right.items()}
        for name, tensor in state.items():
            if set(bad) & set(name.split(".")):
                noise = rng.normal(size=tuple(tensor.shape)).astype(np.float32)
                tensor += 0.5 * torch.from_numpy(noise)
        save_file(state, file, metadata={"format": "pt"})
    pool = MemberPool.open(pool.members[0].path.parent)
    scorer, model = evaluator.score, evaluator.model
    evaluator = Evaluator(
        ResidentAverage(pool, model),
        model,
        scorer,
        evaluator.objectives,
        EvaluationStore(None, "two"),
    )
    found = layers(pool, evaluator, budget=18, seed=0, loop=Loop.in_memory(), parts=1)
    assert found.details["accepted"] is True
    assert found.details["p_value"] < 0.05
    assert isinstance(found.point, LayerWeights)
    assert found.details["gain"] > 0.02
