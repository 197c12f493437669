"""Where an evaluation runs. An executor returns values; it never writes to storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Report = Callable[[int, float], bool]
"""`report(step, value)`: hand in an intermediate value; whether to stop the trial now."""

Work = Callable[[Any, int, Report], Any]
"""`work(payload, number, report)`: what a worker does for each trial."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trial: a value, or the exception that ended it.

    Attributes:
        number: The trial's number in its study.
        value: What the evaluation returned; None if it failed.
        error: What it raised; None if it succeeded. A failure is an outcome too.
        lost: Why earlier attempts came to nothing: the workers that died with them.
    """

    number: int
    value: Any = None
    error: Exception | None = None
    lost: tuple[str, ...] = ()


@runtime_checkable
class Portable(Protocol):
    """An evaluation that can also run in another process, on another machine."""

    def worker(self) -> Callable[[], Work]:
        """What makes the evaluation there: small, can be pickled, compares equal to its like.

        A worker calls it once and keeps what it returns, with models and data, for all
        trials that follow.
        """
        ...

    def pack(self, params: Any, number: int) -> Any:
        """What the worker needs to know of one trial; None if it is better evaluated here."""
        ...

    def unpack(self, params: Any, number: int, value: Any) -> Any:
        """What the worker returned → what the evaluation returns. Called in the driver."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation; calling it runs it here.

    Attributes:
        evaluate: The evaluation, `Portable` or not.
        params: Its first argument.
        number: The trial's number.
        report: Takes intermediate values; called in the driver.
        reports: Whether there can be intermediate values at all.
    """

    evaluate: Callable[[Any, int, Report], Any]
    params: Any
    number: int
    report: Report = field(default=lambda step, value: False)
    reports: bool = True

    def __call__(self) -> Any:
        """Evaluate in this process."""
        return self.evaluate(self.params, self.number, self.report)


class Executor(Protocol):
    """Runs evaluations, at most `capacity` at a time."""

    @property
    def capacity(self) -> int:
        """How many trials can usefully be pending at once."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether outcomes come in the order of the trials' numbers, whenever they end."""
        ...

    def submit(self, number: int, evaluate: Callable[[], Any]) -> None:
        """Start (or queue) the evaluation of trial `number`.

        One that runs elsewhere takes a `Job` apart and may send its parts over a network.
        """
        ...

    def next_done(self) -> Outcome:
        """Wait for any submitted trial to end and return its outcome."""
        ...

    def any_done(self) -> bool:
        """Whether `next_done` would return at once, without evaluating anything."""
        ...

    def release(self) -> None:
        """Give back models, data and devices that are held between trials; more may come."""
        ...

    def close(self) -> None:
        """Release what the executor holds."""
        ...
