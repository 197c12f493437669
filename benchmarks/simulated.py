"""Evaluations that take a given time and nothing else; workers import no more than this."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sleeping:
    """The work of a worker: to wait."""

    seconds: float

    def __call__(self) -> Callable[[Any, int, Any], None]:
        def work(payload: Any, number: int, report: Any) -> None:
            time.sleep(self.seconds)

        return work
