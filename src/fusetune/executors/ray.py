"""Evaluations on many machines, through Ray; the only module that imports it.

    driver ── submit(job) ──▶ queue ──▶ a worker that is free: makes its evaluation once,
       ▲                                keeps models and data, gets only the payload
       └── next_done() ◀── value, error, or the news that the worker has died

Workers are actors. One that dies is replaced where there is room; its trial goes to the head of
the queue. Intermediate values come to the driver, which asks the pruner, through a relay.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fusetune.errors import RecipeError, StageError
from fusetune.executors import cluster
from fusetune.executors.backlog import Backlog
from fusetune.executors.cluster import Options
from fusetune.executors.executor import Executor, Outcome
from fusetune.executors.worker import Make, Relay, Worker

logger = logging.getLogger(__name__)
TICK = 5.0  # seconds after which the cluster is looked at, where no news come
GRACE = 30.0  # seconds without room for any worker before the run ends, `wait` or not
STORE = 128 * 2**20  # bytes of the object store on one machine: payloads and values are small


@dataclass(eq=False, slots=True)
class _Hand:
    """The driver's side of one worker."""

    actor: Any
    place: str = "a node"


class RayExecutor:
    """Keeps as many workers as asked for busy, on whatever nodes have room for them.

    Args:
        options: Checked.

    Raises:
        RecipeError: If the cluster cannot be reached or has no room for the workers.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connected = _connect(options)
        try:
            self._workers, self._per_worker = cluster.size(options, _nodes)
        except BaseException:
            self.close()
            raise
        self._backlog = Backlog(ordered=self.ordered, retries=options.retries)
        self._starting: dict[Any, _Hand] = {}
        self._idle: list[_Hand] = []
        self._running: dict[Any, tuple[_Hand, int]] = {}
        self._made: list[tuple[Make, Any]] = []
        self._relay: Any = None
        self._question: Any = None
        self._failed_starts = 0
        self._no_room_since: float | None = None
        logger.info("ray: %d workers of %s", self._workers, self._per_worker)

    @property
    def capacity(self) -> int:
        """One trial for each worker, and those that wait for one."""
        return self._workers + self._options.ahead

    @property
    def ordered(self) -> bool:
        """Whether the option `deterministic` is set, or there is one worker."""
        return self._options.deterministic or self.capacity == 1

    def start(self) -> None:
        """Start all workers now and wait for them; otherwise the first trials do."""
        self._hire()
        while self._starting:
            self._wait()

    def submit(self, number: int, evaluate: Callable[[], Any]) -> None:
        """Queue the evaluation of trial `number`; a free worker begins at once."""
        self._backlog.add(number, evaluate)
        if self._backlog.waiting:
            self._hire()
            self._dispatch()

    def next_done(self) -> Outcome:
        """Wait for a trial to end; in deterministic runs, for the one with the lowest number.

        Raises:
            ValueError: If nothing was submitted.
            RunError: If a node has other versions than the driver.
            StageError: If no node is left, or workers cannot be started.
        """
        if not len(self._backlog):
            raise ValueError("No evaluation was submitted whose outcome could be awaited.")
        while (outcome := self._backlog.take()) is None:
            self._wait()
        return outcome

    def any_done(self) -> bool:
        """Whether an outcome is there; all news that have come are taken."""
        while len(self._backlog) and self._wait(0.0):
            pass
        return self._backlog.due is not None

    def release(self) -> None:
        """End all workers, with what they hold."""
        for hand in self._hands():
            ray.kill(hand.actor)
        self._starting, self._idle, self._running = {}, [], {}
        self._made = []

    def close(self) -> None:
        """End all workers; leave the cluster, and stop it if it was started here."""
        if ray.is_initialized() and hasattr(self, "_idle"):
            self.release()
            if self._relay is not None:
                ray.kill(self._relay)
        if self._connected:
            ray.shutdown()
            self._connected = False

    def _keep(self, make: Make) -> tuple[int, Any]:
        """A number for what workers hold, and where they find it; it is sent once."""
        for key, (known, reference) in enumerate(self._made):
            if known == make:
                return key, reference
        self._made.append((make, ray.put(make)))
        return len(self._made) - 1, self._made[-1][1]

    def _hands(self) -> list[_Hand]:
        return [*self._starting.values(), *self._idle, *(h for h, _ in self._running.values())]

    def _hire(self) -> None:
        """Start workers up to the number wanted, as far as the nodes have room."""
        missing = self._workers - len(self._hands())
        if missing <= 0:
            return
        fits = cluster.room(_nodes(), self._per_worker) - len(self._hands())
        others = dict(self._per_worker)
        amounts = {"num_cpus": others.pop("CPU", 0.0), "num_gpus": others.pop("GPU", 0.0)}
        for _ in range(min(missing, fits)):
            actor = ray.remote(Worker).options(resources=others, **amounts).remote()
            self._starting[actor.hello.remote()] = _Hand(actor)

    def _dispatch(self) -> None:
        while self._backlog.waiting and self._idle:
            hand, number = self._idle.pop(), self._backlog.waiting.popleft()
            task = self._backlog.tasks[number]
            report = None
            if task.job.reports:
                attempt = (number, len(task.lost))
                report = functools.partial(_ask, self._open_relay(), attempt)
            key, make = self._keep(task.make)
            ref = hand.actor.run.remote(key, make, task.payload, number, report)
            self._running[ref] = (hand, number)

    def _open_relay(self) -> Any:
        if self._relay is None:
            node = ray.get_runtime_context().get_node_id()
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            made = ray.remote(Relay).options(num_cpus=0, scheduling_strategy=here)
            self._relay = made.remote()
            self._question = self._relay.next.remote()
        return self._relay

    def _wait(self, seconds: float = TICK) -> bool:
        """Take one piece of news, whatever it is; whether there was one."""
        waiting = [*self._running, *self._starting]
        if self._question is not None:
            waiting.append(self._question)
        ready = ray.wait(waiting, num_returns=1, timeout=seconds)[0] if waiting else []
        if not ready and seconds > 0.0:
            time.sleep(0.0 if waiting else 1.0)
            self._look()
        for ref in ready:
            if ref in self._running:
                self._ended(ref)
            elif ref in self._starting:
                self._started(ref)
            else:
                self._answer(ref)
        self._dispatch()
        return bool(ready)

    def _started(self, ref: Any) -> None:
        hand = self._starting.pop(ref)
        try:
            said = ray.get(ref)
        except RayError as error:
            self._failed_starts += 1
            reason = cluster.reason(error)
            logger.warning("A worker did not start: %s.", reason)
            if self._failed_starts > self._options.retries:
                raise StageError(
                    f"Workers do not start: {reason}.",
                    "Install fusetune and its libraries on all nodes, in the same versions.",
                ) from error
            self._hire()
            return
        cluster.require_same(cluster.software(), said)
        hand.place = f"{said['host']}, process {said['process']}"
        self._failed_starts, self._no_room_since = 0, None
        self._idle.append(hand)

    def _ended(self, ref: Any) -> None:
        hand, number = self._running.pop(ref)
        try:
            value, error = ray.get(ref)
        except RayTaskError as failure:  # the value or the payload cannot be sent
            value, error = None, RuntimeError(cluster.reason(failure))
        except RayError as failure:
            reason = f"the worker on {hand.place} died: {cluster.reason(failure)}"
            ray.kill(hand.actor)  # if it only seemed so, it may not go on
            again = self._backlog.lose(number, reason)
            logger.warning("trial %d%s: %s", number, " again" if again else "", reason)
            self._hire()
            return
        self._idle.append(hand)
        self._dispatch()  # before anything else: the worker is free now
        self._backlog.end(number, value, error)

    def _look(self) -> None:
        """Nothing has happened for a while: is there still a cluster to wait for?"""
        self._hire()
        if self._idle or self._running:
            return
        if cluster.room(_nodes(), self._per_worker) > 0:
            logger.info("waiting for a worker to start; others may be using the cluster")
            self._no_room_since = None
            return
        now = time.monotonic()
        self._no_room_since = self._no_room_since or now
        if now - self._no_room_since >= max(GRACE, self._options.wait):
            raise StageError(
                "The cluster has no node left with room for a worker.",
                "Trials are kept: run again when nodes are back, or raise executor.wait.",
            )

    def _answer(self, ref: Any) -> None:
        """Ask the pruner on a worker's behalf."""
        ticket, (number, attempt), step, value = ray.get(ref)
        stop = self._backlog.ask(number, attempt, step, value)
        self._relay.answer.remote(ticket, stop)
        self._question = self._relay.next.remote()


def _ask(relay: Any, trial: tuple[int, int], step: int, value: float) -> bool:
    """In a worker: hand a value to the driver, and wait for its answer."""
    answer: bool = ray.get(relay.ask.remote(trial, step, value))
    return answer


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _connect(options: Options) -> bool:
    """Join the cluster, or start one on this machine; whether this process did either."""
    if ray.is_initialized():
        return False
    address = options.address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in (None, "local"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        more = {"include_dashboard": False, "object_store_memory": STORE}
        with cluster.loopback(ray._private.ray_constants):
            ray.init(address="local", **more, **quiet)
        return True
    if address != "auto":
        cluster.require_reachable(str(address))
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, RayError, OSError) as error:
        raise RecipeError(
            f"executor.address: {address}: {cluster.reason(error)}.",
            "Check that `ray start` runs here, and with the same versions of Ray and Python.",
        ) from error
    return True


def create(**options: Any) -> Executor:
    """An executor that joins or starts a cluster; see `cluster.Options` for its options.

    Raises:
        RecipeError: If an option is wrong, the cluster cannot be reached, or has no room.
    """
    return RayExecutor(Options.of(**options))
