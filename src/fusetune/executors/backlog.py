"""The driver's list of trials that are on their way, and of outcomes not yet asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fusetune.errors import StageError
from fusetune.executors.executor import Job, Outcome, Portable, Report, Work


@dataclass(frozen=True, slots=True)
class Plain:
    """The work of an evaluation that is not `Portable`: sent as it is."""

    evaluate: Work

    def __call__(self) -> Work:
        """The evaluation."""
        return self.evaluate


@dataclass(frozen=True, slots=True)
class Call:
    """A function without arguments, as an evaluation."""

    function: Callable[[], Any]

    def __call__(self, payload: Any, number: int, report: Report) -> Any:
        """What the function returns."""
        return self.function()


@dataclass(slots=True)
class Task:
    """One trial on its way.

    Attributes:
        job: What was submitted.
        make: Makes its work, in a worker.
        payload: What that needs to know.
        lost: Why earlier attempts came to nothing.
    """

    job: Job
    make: Callable[[], Work]
    payload: Any
    lost: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, number: int, evaluate: Callable[[], Any]) -> Task | None:
        """The task of an evaluation; None if it is better made here."""
        plain = Job(Call(evaluate), None, number, reports=False)
        job = evaluate if isinstance(evaluate, Job) else plain
        portable: object = job.evaluate
        if not isinstance(portable, Portable):
            return cls(job, Plain(job.evaluate), job.params)
        payload = portable.pack(job.params, number)
        return None if payload is None else cls(job, portable.worker(), payload)

    def outcome(self, value: Any, error: Exception | None) -> Outcome:
        """What a worker's answer means."""
        job = self.job
        portable: object = job.evaluate
        if error is None and isinstance(portable, Portable):
            try:
                value = portable.unpack(job.params, job.number, value)
            except Exception as failure:
                value, error = None, failure
        return Outcome(job.number, value=value, error=error, lost=tuple(self.lost))


class Backlog:
    """Trials wait, run, and are done; those whose worker has died wait again.

    Args:
        ordered: Whether outcomes are given in the order of the trials' numbers.
        retries: How often a trial is tried again.
    """

    def __init__(self, *, ordered: bool, retries: int) -> None:
        self.ordered = ordered
        self.retries = retries
        self.waiting: deque[int] = deque()
        self.tasks: dict[int, Task] = {}
        self._done: dict[int, Outcome] = {}

    def __len__(self) -> int:
        return len(self.tasks) + len(self._done)

    def add(self, number: int, evaluate: Callable[[], Any]) -> None:
        """A new trial; one that is better evaluated here is, at once."""
        try:
            task = Task.of(number, evaluate)
            if task is None:
                self._done[number] = Outcome(number, value=evaluate())
                return
        except Exception as error:
            self._done[number] = Outcome(number, error=error)
            return
        self.tasks[number] = task
        self.waiting.append(number)

    def end(self, number: int, value: Any, error: Exception | None) -> None:
        """A worker has answered."""
        self._done[number] = self.tasks.pop(number).outcome(value, error)

    def lose(self, number: int, reason: str) -> bool:
        """A worker has died; whether the trial is tried again."""
        task = self.tasks[number]
        task.lost.append(reason)
        if len(task.lost) <= self.retries:
            self.waiting.appendleft(number)
            return True
        error = StageError(f"{len(task.lost)} workers died with this trial; {reason}.")
        self.end(number, None, error)
        return False

    @property
    def due(self) -> int | None:
        """The trial whose outcome is due; None if there is none yet."""
        if not self.ordered:
            return next(iter(self._done), None)
        number = min([*self._done, *self.tasks], default=None)
        return number if number in self._done else None

    def take(self) -> Outcome | None:
        """The outcome that is due; None if there is none yet."""
        number = self.due
        return None if number is None else self._done.pop(number)

    def ask(self, number: int, attempt: int, step: int, value: float) -> bool:
        """Whether a trial is to stop; one that runs elsewhere by now is."""
        task = self.tasks.get(number)
        if task is None or len(task.lost) != attempt:
            return True
        return task.job.report(step, value)
