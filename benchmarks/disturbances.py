"""What `faults` does to a run: kill its driver or its workers, restart its storage."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks import postgresql, tiny

STAGES = ("check", "search", "train", "fuse", "report")
LIMIT = 600.0  # seconds of one run: against a hang alone
AWAY = (0.1, 3.0)  # seconds that a server stays stopped


@dataclass(frozen=True, slots=True)
class Moment:
    """When to disturb.

    Attributes:
        stage: Place of the stage in `STAGES`.
        part: Of the time that the stage took undisturbed, 0 to 1.
    """

    stage: int
    part: float

    @classmethod
    def draw(cls, rng: random.Random, stages: Sequence[str] = STAGES) -> Moment:
        """Evenly over the stages, and over the time of each."""
        return cls(STAGES.index(rng.choice(stages)), rng.random())


class Disturbance(Protocol):
    """One kind of fault.

    Attributes:
        key: What is counted.
        stages: Those in which it can happen.
    """

    key: str
    stages: Sequence[str]

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """What a run in `folder` needs beside its recipe."""
        ...

    def storage(self, folder: Path) -> str | Path:
        """Where that run keeps its trials."""
        ...

    def run(
        self, recipe: str, folder: Path, moments: Sequence[Moment], seconds: Sequence[float]
    ) -> Iterator[int]:
        """Make a run, disturbed at the moments; the stage of each that really was."""
        ...


class Driver:
    """Kills the driver (SIGKILL, the whole process group) and starts it again."""

    key = "kills"
    stages: Sequence[str] = STAGES

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """None."""
        return ()

    def storage(self, folder: Path) -> Path:
        """The run's journal."""
        return folder / "trials.journal"

    def run(
        self, recipe: str, folder: Path, moments: Sequence[Moment], seconds: Sequence[float]
    ) -> Iterator[int]:
        """A new process after each kill."""
        for moment in in_order(moments):
            process = start(recipe, folder)
            if not wait_for(moment, process, folder, seconds) or not _kill(process):
                finish(process)
                return
            yield min(stage_of(folder), len(STAGES) - 1)
        finish(start(recipe, folder))


class Workers:
    """Kills workers of the Ray executor, in its ordered mode; the driver goes on.

    Args:
        rng: Chooses the worker.
        count: Workers of a run.
    """

    key = "kills"
    stages: Sequence[str] = ("search", "fuse")

    def __init__(self, rng: random.Random, count: int = 2) -> None:
        self._rng = rng
        self._count = count

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """Ray on this machine; a trial is tried again however often its worker dies."""
        return (
            "executor.kind=ray", f"executor.workers={self._count}", "executor.retries=50",
            "executor.cpus_per_worker=0.5", "executor.deterministic=true",
        )  # fmt: skip

    def storage(self, folder: Path) -> Path:
        """The run's journal."""
        return folder / "trials.journal"

    def run(
        self, recipe: str, folder: Path, moments: Sequence[Moment], seconds: Sequence[float]
    ) -> Iterator[int]:
        """One process for all kills."""
        process = start(recipe, folder, self.overrides(folder))
        for moment in in_order(moments):
            if not wait_for(moment, process, folder, seconds):
                break
            stage = stage_of(folder)
            if self._kill_one(process, folder, moment.stage):
                yield stage
        finish(process)

    def _kill_one(self, driver: BaseProcess, folder: Path, stage: int) -> bool:
        """Kill a worker as soon as there is one in this stage; False if none comes."""
        while driver.is_alive() and stage_of(folder) == stage:
            if found := workers_of(driver):
                try:
                    self._rng.choice(found).kill()
                except psutil.NoSuchProcess:
                    continue
                return True
            time.sleep(0.005)
        return False


class Restarts:
    """Stops the PostgreSQL server that holds the trials, and starts it again a little later.

    Args:
        rng: Chooses how it is stopped, and for how long.
        server: Of one's own, running.
    """

    key = "restarts"
    stages: Sequence[str] = STAGES[1:]  # what the check opens has to answer at once

    def __init__(self, rng: random.Random, server: postgresql.Server) -> None:
        self._rng = rng
        self._server = server
        self._urls: dict[Path, str] = {}

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """A database of the run's own."""
        return (f"storage={self.storage(folder)}",)

    def storage(self, folder: Path) -> str:
        """Its URL."""
        if folder not in self._urls:
            self._urls[folder] = self._server.database(f"run{len(self._urls)}")
        return self._urls[folder]

    def run(
        self, recipe: str, folder: Path, moments: Sequence[Moment], seconds: Sequence[float]
    ) -> Iterator[int]:
        """One process for all restarts."""
        process = start(recipe, folder, self.overrides(folder))
        for moment in in_order(moments):
            if not wait_for(moment, process, folder, seconds):
                break
            stage = stage_of(folder)
            self._server.stop(self._rng.choice(("fast", "immediate")))
            time.sleep(self._rng.uniform(*AWAY))
            self._server.start()
            yield min(stage, len(STAGES) - 1)
        finish(process)


def start(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> BaseProcess:
    """A run in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusetune.pipeline", "transformers.trainer"])
    process = context.Process(target=tiny.work, args=(recipe, str(folder), tuple(overrides)))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Wait for the end of a run that has to succeed."""
    process.join(LIMIT)
    if process.exitcode != 0:
        raise SystemExit(f"A run ended with {process.exitcode}.")


def stage_of(folder: Path) -> int:
    """The place in `STAGES` of the stage that a run is at; one past the last if it is done."""
    done = [name for name in STAGES[1:] if (folder / "stages" / f"{name}.json").exists()]
    if done:
        return STAGES.index(done[-1]) + 1
    return 1 if (folder / "environment.json").exists() else 0


def undisturbed(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> list[float]:
    """Make a run; seconds that each stage took."""
    process = start(recipe, folder, overrides)
    entered = [time.monotonic()] + [0.0] * len(STAGES)
    while process.is_alive() and time.monotonic() < entered[0] + LIMIT:
        for place in range(1, stage_of(folder) + 1):
            entered[place] = entered[place] or time.monotonic()
        time.sleep(0.002)
    finish(process)
    ends = [at or time.monotonic() for at in entered]
    return [max(0.001, b - a) for a, b in itertools.pairwise(ends)]


def in_order(moments: Sequence[Moment]) -> list[Moment]:
    """As a run comes to them."""
    return sorted(moments, key=lambda m: (m.stage, m.part))


def wait_for(
    moment: Moment, process: BaseProcess, folder: Path, seconds: Sequence[float]
) -> bool:
    """Wait for a moment of a run; False if that ends before."""
    while stage_of(folder) < moment.stage and process.is_alive():
        time.sleep(0.002)
    deadline = time.monotonic() + moment.part * seconds[moment.stage]
    while time.monotonic() < deadline and process.is_alive():
        time.sleep(0.001)
    return process.is_alive()


def workers_of(driver: BaseProcess) -> list[psutil.Process]:
    """The processes of a driver's workers; Ray writes what they are into their titles."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title and title[0].startswith("ray::Worker"):
            found.append(process)
    return found


def prefix_of(folder: Path) -> str:
    """What a run's studies are called by in a storage that others use too."""
    file = folder / "studies.json"
    return str(json.loads(file.read_text())["prefix"]) if file.exists() else ""


def _kill(process: BaseProcess) -> bool:
    """Kill a run; False if it was done before."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # forked a moment ago, without a group of its own yet
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL
