"""Several processes that a launcher started, acting as one: the first leads, the others follow.

`torchrun` and `accelerate launch` start one process per device, all with the same command. The
first is the driver: it alone asks and tells, writes and shows. What needs every device, a
training or an evaluation, it sends to the others, and all do it at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from fusetune.errors import StageError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a follower waits for the next work: the driver may search, or write, for long."""

_current: Group | None = None


def launched() -> int:
    """How many processes a launcher started for this run; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def current() -> Group | None:
    """The group that this process belongs to; None if it is alone."""
    return _current


class Group:
    """The processes of one run. Collective: every method is called by all of them.

    Only processes of this run, started by one launcher, are in it; what they send to one
    another is pickled.

    Args:
        control: Carries work and answers; apart from what trainings and models send.
    """

    def __init__(self, control: distributed.ProcessGroup) -> None:
        self._control = control
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self.on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    @classmethod
    def join(cls, device: str) -> Group:
        """Meet the other processes; each takes one device.

        Args:
            device: "cuda", "cpu" or another one, as PyTorch names it.
        """
        global _current
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            distributed.init_process_group("cpu:gloo,cuda:nccl")
        else:
            os.environ["ACCELERATE_USE_CPU"] = "true"  # else the Trainer looks for more
            distributed.init_process_group("gloo")
        _current = cls(distributed.new_group(backend="gloo", timeout=PATIENCE))
        return _current

    def lead(self, message: Any, work: Callable[[], T]) -> T:
        """Of the first process: send a message, do its work along with the others.

        Args:
            message: What the others do is known by it; can be pickled.
            work: The same, here.

        Raises:
            StageError: If another process failed, and this one did not.
            Exception: Whatever the work raised here.
        """
        distributed.broadcast_object_list([message], src=0, group=self._control)
        return self._agreed(work)

    def follow(self, work: Callable[[Any], object]) -> None:
        """Of the others: do what the first one sends, until it has no more work.

        What fails here fails there too, and is told there.
        """
        while True:
            box: list[Any] = [None]
            distributed.broadcast_object_list(box, src=0, group=self._control)
            message = box[0]
            if message is None:
                return
            try:
                self._agreed(lambda message=message: work(message))  # type: ignore[misc]
            except Exception:
                continue

    def dismiss(self) -> None:
        """Of the first process: there is no more work."""
        distributed.broadcast_object_list([None], src=0, group=self._control)

    def same(self, value: T) -> T:
        """What the first process has, in all of them."""
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """What each has, by rank, in all of them."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self._control)
        return found

    def in_turn(self, work: Callable[[], T]) -> T:
        """One after the other, so that what each needs for it is needed once at a time."""
        result: list[T] = []
        for rank in range(self.size):
            if rank == self.rank:
                result.append(work())
            distributed.barrier(group=self._control)
        return result[0]

    def leave(self) -> None:
        """Give up the connections."""
        global _current
        _current = None
        distributed.destroy_process_group()

    def _agreed(self, work: Callable[[], T]) -> T:
        """Do the work; all know whether it failed anywhere before any goes on."""
        found: list[T] = []
        error: Exception | None = None
        try:
            found.append(work())
        except Exception as raised:
            error = raised
        told = self.gather("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(told):
            if text:
                raise StageError(f"Process {rank} of {self.size} failed: {text}")
        return found[0]
