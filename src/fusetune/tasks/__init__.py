"""What is learned. Every module here that has `KINDS` adds task kinds: a file is enough."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from fusetune.errors import RecipeError

if TYPE_CHECKING:
    from fusetune.tasks.task import Task


def kinds() -> tuple[str, ...]:
    """The names of all task kinds, sorted."""
    return tuple(sorted(_registry()))


def find(kind: str) -> Callable[..., Task]:
    """What makes a task of that kind, called with plain arguments.

    Raises:
        RecipeError: If there is none; the message lists the known kinds.
    """
    known = _registry()
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=1)
        raise RecipeError(
            f"There is no task kind {kind!r}; known are {', '.join(sorted(known))}.",
            hint=f"Did you mean {close[0]}?" if close else "",
        )
    return known[kind]


def _registry() -> dict[str, Callable[..., Task]]:
    """Read from the modules each time: imports are kept by Python, and nothing goes stale."""
    found: dict[str, Callable[..., Task]] = {}
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        found.update(getattr(importlib.import_module(module.name), "KINDS", {}))
    return found
