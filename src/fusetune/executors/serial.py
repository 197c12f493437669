"""One evaluation after another, in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from fusetune.errors import RecipeError
from fusetune.executors.executor import Executor, Outcome


class SerialExecutor:
    """Queues what is submitted and runs the oldest when its outcome is asked for."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Callable[[], Any]]] = deque()

    @property
    def capacity(self) -> int:
        """One."""
        return 1

    @property
    def ordered(self) -> bool:
        """Always."""
        return True

    def submit(self, number: int, evaluate: Callable[[], Any]) -> None:
        """Queue the evaluation of trial `number`; nothing runs yet."""
        self._queue.append((number, evaluate))

    def next_done(self) -> Outcome:
        """Run the oldest evaluation that was submitted.

        Ctrl-C and a request to exit are no outcome: they end the caller.

        Raises:
            ValueError: If nothing was submitted.
        """
        if not self._queue:
            raise ValueError("No evaluation was submitted whose outcome could be awaited.")
        number, evaluate = self._queue.popleft()
        try:
            return Outcome(number, value=evaluate())
        except Exception as error:
            return Outcome(number, error=error)

    def any_done(self) -> bool:
        """Never: what is queued runs when it is asked for."""
        return False

    def release(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()


def create(**options: object) -> Executor:
    """A serial executor; it has no options.

    Raises:
        RecipeError: If an option is given.
    """
    if options:
        raise RecipeError(
            f"executor: the kind serial takes no options; got {', '.join(options)}."
        )
    return SerialExecutor()
