"""What a cluster has room for, and whether its nodes run the same software. No Ray in here."""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from fusetune.errors import RecipeError, RunError, closest

CONNECT = 10.0  # seconds for a head node to answer
SAME = ("fusetune", "python", "torch", "transformers")
"""What must be the same on all nodes; of Python, the first two numbers."""


@dataclass(frozen=True, slots=True)
class Options:
    """The keys of the recipe's `executor` beside `kind`.

    Attributes:
        address: Of a cluster: "auto" for the one on this machine, "host:port". None joins the
            one that RAY_ADDRESS names, else starts Ray on this machine alone.
        workers: How many; None for as many as the nodes have room for.
        cpus_per_worker: Logical processors of each.
        gpus_per_worker: GPUs of each; None is 1 where some node has a GPU, else 0.
        resources_per_worker: Further resources of the cluster, name → amount.
        ahead: Trials that wait for a worker, so that none waits for a suggestion.
        deterministic: Tell results in the order of the trials' numbers.
        retries: How often a trial is tried again after its worker has died.
        wait: Seconds to wait for nodes, at the start and after all were lost.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    resources_per_worker: Mapping[str, float] | None = None
    ahead: int = 0
    deterministic: bool = False
    retries: int = 3
    wait: float = 0.0

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Checked options.

        Raises:
            RecipeError: If one is unknown or its value makes no sense.
        """
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise RecipeError(
                    f"executor.{name}: unknown{closest(name, known)}",
                    f"(known of kind ray: {', '.join(known)})",
                )
        options = cls(**given)
        counts = {"workers": (options.workers, 1)}
        counts |= {n: (getattr(options, n), 0) for n in ("ahead", "retries")}
        for name, (value, least) in counts.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise RecipeError(
                    f"executor.{name}: a whole number from {least}; got {value!r}."
                )
        for name in ("cpus_per_worker", "gpus_per_worker", "wait"):
            value = getattr(options, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0.0 <= value < float("inf")):
                raise RecipeError(f"executor.{name}: a number from 0; got {value!r}.")
        if not isinstance(options.deterministic, bool):
            raise RecipeError(
                f"executor.deterministic: true or false; got {options.deterministic!r}."
            )
        return options

    def per_worker(self, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Resource → amount that each worker takes; see `gpus_per_worker`."""
        gpus = self.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU", 0.0) >= 1.0 for node in nodes) else 0.0
        wanted = {"CPU": self.cpus_per_worker, "GPU": gpus, **(self.resources_per_worker or {})}
        return {name: float(amount) for name, amount in wanted.items() if amount > 0.0}


def room(nodes: Iterable[Mapping[str, float]], per_worker: Mapping[str, float]) -> int:
    """How many workers the nodes can hold in all; a worker lies on one node.

    Args:
        nodes: Resource → amount in all, one mapping per node that is alive.
        per_worker: Resource → amount; one of them at least.
    """
    total = 0
    for node in nodes:
        fits = [
            int((node.get(name, 0.0) + 1e-9) // amount) for name, amount in per_worker.items()
        ]
        total += min(fits, default=0)
    return total


def require_room(
    nodes: Sequence[Mapping[str, float]], per_worker: Mapping[str, float], workers: int | None
) -> int:
    """The number of workers: those wanted, or as many as fit.

    Raises:
        RecipeError: If fewer fit than are wanted, or none.
    """
    fits = room(nodes, per_worker)
    if fits >= (workers or 1):
        return workers or fits
    has = "; ".join(_amounts(node) for node in nodes) or "no node is there"
    wanted = f"{workers} workers" if workers else "a worker"
    raise RecipeError(
        f"executor: {wanted} of {_amounts(per_worker)} each {'were' if workers else 'was'} "
        f"asked for, and the cluster has room for {fits} ({has}).",
        "Ask for less, add nodes, or give executor.wait, in seconds, for nodes that are "
        "still to come.",
    )


def size(
    options: Options, nodes: Callable[[], Sequence[Mapping[str, float]]]
) -> tuple[int, dict[str, float]]:
    """Number of workers and what each takes, when the cluster has that or time is up.

    Args:
        options: `wait` says how long nodes may still come.
        nodes: The resources of the nodes that are there now.

    Raises:
        RecipeError: As `require_room`.
    """
    deadline = time.monotonic() + options.wait
    while True:
        found = nodes()
        per_worker = options.per_worker(found)
        if not per_worker:
            raise RecipeError("executor: a worker takes nothing; give cpus_per_worker.")
        try:
            return require_room(found, per_worker, options.workers), per_worker
        except RecipeError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1.0)


def software() -> dict[str, str]:
    """Versions on this machine, and its name."""
    found = {name: version(name) for name in SAME if name != "python"}
    python = ".".join(platform.python_version_tuple()[:2])
    return {**found, "python": python, "host": socket.gethostname()}


def require_same(driver: Mapping[str, str], worker: Mapping[str, str]) -> None:
    """Check that a worker has the driver's versions.

    Raises:
        RunError: If not; it names the node and what differs.
    """
    different = [
        f"{name} {worker.get(name)} there, {driver[name]} here"
        for name in SAME
        if worker.get(name) != driver[name]
    ]
    if different:
        raise RunError(
            f"The node {worker.get('host')} has other software than the driver: "
            f"{'; '.join(different)}.",
            "Install the same versions on all nodes, then run again.",
        )


def require_reachable(address: str) -> None:
    """Check that somebody listens at `host:port`, before a library waits for it for minutes.

    Raises:
        RecipeError: If it is no such address, or nobody answers.
    """
    if "://" in address:
        raise RecipeError(
            f"executor.address: host:port or auto; got {address!r}.",
            "Run fusetune on a node of the cluster, as with `ray job submit`.",
        )
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise RecipeError(f"executor.address: host:port or auto; got {address!r}.")
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError as error:
        raise RecipeError(
            f"executor.address: nobody answers at {address}: {error}.",
            "Check that `ray start --head` runs there and that its port can be reached.",
        ) from error


@contextmanager
def loopback(constants: Any) -> Iterator[None]:
    """Let Ray, if it is started inside the block, listen on this machine's loopback alone.

    Ray binds to all interfaces unless the node's address is 127.0.0.1, and gives a node that
    address only where clusters are off, as on macOS. It read the variable when it was
    imported; the processes that it starts read it themselves.

    Args:
        constants: Ray's module of them.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before = constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(name)
        if before[1] is not None:
            os.environ[name] = before[1]


def reason(error: Exception) -> str:
    """What an error says in many lines, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Neither Ray's own keys, as "actor_id: …", nor the marks under a traceback's lines.
    plain = [line for line in lines if not re.match(r"[a-z_]+: |[~^]+$", line)]
    return (plain or lines or [type(error).__name__])[-1].rstrip(".")[:300]


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {n: a for n, a in resources.items() if ":" not in n and "memory" not in n}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
