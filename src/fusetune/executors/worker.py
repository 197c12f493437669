"""What runs in the processes of a cluster, whatever the cluster is made with."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable
from typing import Any

from fusetune.executors.cluster import software
from fusetune.executors.executor import Report, Work

Make = Callable[[], Work]

Question = tuple[int, tuple[int, int], int, float]
"""Ticket; trial number and attempt; step; value."""


class Worker:
    """Holds one evaluation, with its models and data, for all trials that need it."""

    def __init__(self) -> None:
        self._key: int | None = None
        self._work: Work | None = None

    def hello(self) -> dict[str, str]:
        """Versions, machine and process."""
        return software() | {"process": str(os.getpid())}

    def run(
        self, key: int, make: Make, payload: Any, number: int, report: Report | None
    ) -> tuple[Any, Exception | None]:
        """A value, or what was raised in its place.

        Args:
            key: Of the evaluation; another one than before is made anew.
            make: Makes it.
            payload: What it needs to know of the trial.
            number: The trial's number.
            report: Asks the driver; None where there are no intermediate values.
        """
        try:
            if self._key != key or self._work is None:
                self._work = self._key = None  # give its memory back first
                self._work = make()
                self._key = key
            return self._work(payload, number, report or _never), None
        except Exception as error:
            return None, portable(error)


class Relay:
    """Hands the workers' questions to the driver, one by one, and its answers back."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Question] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self._count = 0

    async def ask(self, trial: tuple[int, int], step: int, value: float) -> bool:
        """Of a worker: whether its trial is to stop. Waits for the driver."""
        self._count += 1
        ticket = self._count
        self._answers[ticket] = asyncio.get_running_loop().create_future()
        await self._asked.put((ticket, trial, step, value))
        return await self._answers[ticket]

    async def next(self) -> Question:
        """Of the driver: the oldest question. Waits for one."""
        return await self._asked.get()

    async def answer(self, ticket: int, stop: bool) -> None:
        """Of the driver."""
        waiting = self._answers.pop(ticket)
        if not waiting.done():
            waiting.set_result(stop)


def portable(error: Exception) -> Exception:
    """The error itself where it survives a journey between processes, else its text."""
    try:
        copy.deepcopy(error)  # by the same protocol as the journey
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _never(step: int, value: float) -> bool:
    return False
