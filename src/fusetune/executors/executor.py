"""Where an evaluation runs. An executor returns values; it never writes to storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trial: a value, or the exception that ended it.

    Attributes:
        number: The trial's number in its study.
        value: What the evaluation returned; None if it failed.
        error: What it raised; None if it succeeded. A failure is an outcome too.
    """

    number: int
    value: Any = None
    error: Exception | None = None


class Executor(Protocol):
    """Runs evaluations, at most `capacity` at a time."""

    @property
    def capacity(self) -> int:
        """How many trials can usefully be pending at once."""
        ...

    def submit(self, number: int, evaluate: Callable[[], Any]) -> None:
        """Start (or queue) the evaluation of trial `number`."""
        ...

    def next_done(self) -> Outcome:
        """Wait for any submitted trial to end and return its outcome."""
        ...

    def close(self) -> None:
        """Release what the executor holds."""
        ...
