"""Ray on this machine: one start for all tests of the file, processors counted, not needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from fusetune.errors import RecipeError, RunError, StageError
from fusetune.executors.executor import Job
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS
from fusetune.optimization.recording import SUGGEST_SECONDS, Proposal, RecordingSampler
from fusetune.optimization.study import Finished, Loop, Pruned, open_storage

ray = pytest.importorskip("ray", reason="needs the extra ray")
psutil = pytest.importorskip("psutil")

from fusetune.executors import cluster  # noqa: E402
from fusetune.executors.ray import RayExecutor, create  # noqa: E402


@dataclass(frozen=True)
class Square:
    """Portable work, defined by what travels."""

    base: int

    def __call__(self) -> Any:
        made = os.getpid()
        base = self.base

        def work(payload: int, number: int, report: Any) -> tuple[int, int]:
            if payload < 0:
                raise ValueError(f"below zero: {payload}")
            return base + payload**2, made

        return work


class Anywhere:
    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self, params: int, number: int, report: Any) -> str:
        return "here"

    def worker(self) -> Square:
        return Square(self.base)

    def pack(self, params: int, number: int) -> int | None:
        return None if params == 0 else params

    def unpack(self, params: int, number: int, value: tuple[int, int]) -> tuple[int, int]:
        return value


@pytest.fixture(scope="module")
def executor() -> Any:
    made = create(workers=2, cpus_per_worker=0.1, gpus_per_worker=0)
    yield made
    made.close()
    assert not ray.is_initialized()


def outcomes(executor: RayExecutor, count: int) -> dict[int, Any]:
    return {o.number: o for o in (executor.next_done() for _ in range(count))}


def test_it_listens_on_the_loopback_alone(executor: RayExecutor) -> None:
    executor.start()
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_work_is_made_once_per_worker_and_values_come_back(executor: RayExecutor) -> None:
    one, two = Anywhere(100), Anywhere(200)
    for number, params in enumerate([1, 2, 3, 0, -5]):
        executor.submit(number, Job(one, params, number))
    found = outcomes(executor, 5)
    assert [found[n].value[0] for n in range(3)] == [101, 104, 109]
    assert found[3].value == "here"
    assert isinstance(found[4].error, ValueError)
    assert "below zero: -5" in str(found[4].error)
    assert os.getpid() not in {found[n].value[1] for n in range(3)}
    executor.submit(9, Job(two, 1, 9))
    assert outcomes(executor, 1)[9].value[0] == 201
    with pytest.raises(ValueError, match="No evaluation was submitted"):
        executor.next_done()


class FollowsHistory(RecordingSampler):
    def __init__(self) -> None:
        super().__init__({"x": FloatDistribution(0, 1)}, seed=3)

    def propose(self, number: int, trials: Any) -> Proposal:
        told = sorted(t.number for t in trials if t.state.is_finished())
        rng = np.random.default_rng((self.seed, number, len(told), *told))
        return Proposal({"x": rng.random()}, "test")


def train(x: float, number: int, report: Any) -> Finished | Pruned:
    pace = float(os.environ.get("PACE", "0.05"))
    time.sleep(pace * (3 - number % 3))  # later trials end sooner
    for step in range(3):
        if report(step, x * (1 + step)):
            return Pruned({"stopped": step})
    return Finished({"loss": x})


def run(loop: Loop, trials: int = 9) -> list[Any]:
    study = loop.run(
        "s", FollowsHistory(), lambda trial: trial.suggest_float("x", 0, 1), train,
        trials=trials, objectives=[LOSS],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
    )  # fmt: skip
    return [
        (t.number, t.state.name, t.values, t.params, t.intermediate_values)
        for t in study.trials
    ]


class InOrder(SerialExecutor):
    """What a deterministic executor promises, without Ray."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        return self._capacity


def test_deterministic_runs_have_one_history(executor: RayExecutor) -> None:
    """Two workers, side by side, the pruner asked over the relay: as in one process."""
    storage = optuna.storages.InMemoryStorage
    expected = run(Loop(storage(), InOrder(2)))
    assert {state for _, state, *_ in expected} == {"COMPLETE", "PRUNED"}
    together = create(workers=2, cpus_per_worker=0.1, gpus_per_worker=0, deterministic=True)
    try:
        interrupted = Loop(storage(), together)
        run(interrupted, trials=4)
        assert run(interrupted)[:4] == expected[:4]
        assert run(Loop(storage(), together)) == expected
    finally:
        together.release()


DRIVER = """
from test_ray import Loop, create, open_storage, run
executor = create(workers=2, cpus_per_worker=0.1, gpus_per_worker=0, deterministic=True)
run(Loop(open_storage({journal!r}), executor))
"""


def test_a_driver_that_was_killed_goes_on_with_the_same_history(
    executor: RayExecutor, tmp_path: Path
) -> None:
    journal = tmp_path / "trials.journal"
    script = DRIVER.format(journal=str(journal))
    slowly = {**os.environ, "PACE": "0.5"}  # no result depends on it
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    slowly["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    process = subprocess.Popen([sys.executable, "-c", script], env=slowly)
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_text().count('"op_code":6') < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # of three trials told, or more
    process.wait()
    storage = open_storage(journal)
    left = optuna.load_study(study_name="s", storage=storage).trials
    assert 3 <= sum(t.state.is_finished() for t in left) < 9
    together = create(workers=2, cpus_per_worker=0.1, gpus_per_worker=0, deterministic=True)
    try:
        found = run(Loop(storage, together))
    finally:
        together.release()
    assert found == run(Loop(optuna.storages.InMemoryStorage(), InOrder(2)))


def test_without_that_nothing_is_lost_or_doubled(executor: RayExecutor) -> None:
    loop = Loop(optuna.storages.InMemoryStorage(), executor)
    found = run(loop)
    assert [number for number, *_ in found] == list(range(9))
    assert {state for _, state, *_ in found} <= {"COMPLETE", "PRUNED"}


def fatal(params: int, number: int, report: Any) -> Finished:
    """Kills its worker: the first time only, or always."""
    mark = f"{params[1]}/{number}"
    if number == 2 or (number == 1 and not os.path.exists(mark)):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)
    return Finished({"loss": float(number)})


def test_a_trial_whose_worker_dies_is_tried_again_up_to_a_limit(
    executor: RayExecutor, tmp_path: Any
) -> None:
    loop = Loop(optuna.storages.InMemoryStorage(), executor)
    study = loop.run(
        "s", FollowsHistory(), lambda trial: (trial.suggest_float("x", 0, 1), str(tmp_path)),
        fatal, trials=4, objectives=[LOSS],
    )  # fmt: skip
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert "lost" not in study.trials[0].user_attrs
    assert len(study.trials[1].user_attrs["lost"]) == 1
    assert "died" in study.trials[1].user_attrs["lost"][0]
    assert len(study.trials[2].user_attrs["lost"]) == 4
    assert "4 workers died with this trial" in study.trials[2].user_attrs["reason"]
    assert SUGGEST_SECONDS in study.trials[1].user_attrs


def test_resources_that_no_node_has_are_refused_at_once(executor: RayExecutor) -> None:
    started = time.monotonic()
    for options, message in (
        ({"workers": 10_000}, r"10000 workers of 1 CPU each were asked for.*room for"),
        ({"gpus_per_worker": 4}, r"a worker of 1 CPU, 4 GPU each was asked for.*room for 0"),
        ({"resources_per_worker": {"TPU": 1}}, "1 TPU"),
    ):
        with pytest.raises(RecipeError, match=message):
            create(**{"gpus_per_worker": 0, **options})
    assert time.monotonic() - started < 5.0


def test_a_node_with_other_software_is_named(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**cluster.software(), "fusetune": "9.9"}
    executor.release()
    monkeypatch.setattr(cluster, "software", lambda: other)
    with pytest.raises(RunError, match=r"other software.*fusetune 0\.1\.0 there, 9\.9 here"):
        executor.start()
    executor.release()


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, message in (
        ("127.0.0.1:9", "nobody answers at 127.0.0.1:9"),
        ("ray://host:10001", "host:port or auto"),
        ("nowhere", "host:port or auto"),
    ):
        with pytest.raises(RecipeError, match=message):
            create(address=address)


def test_workers_that_do_not_start_are_said(executor: RayExecutor, monkeypatch: Any) -> None:
    from fusetune.executors import ray as module

    class Broken:
        def __init__(self) -> None:
            raise ImportError("no module named fusetune")

        def hello(self) -> None: ...

    executor.release()
    monkeypatch.setattr(module, "Worker", Broken)
    with pytest.raises(StageError, match=r"Workers do not start: .*no module named fusetune"):
        executor.start()
    executor.release()
