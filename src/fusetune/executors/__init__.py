"""Where evaluations run. A module here that has `create` is a kind: a file is enough."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from fusetune.errors import RecipeError, closest

if TYPE_CHECKING:
    from fusetune.executors.executor import Executor

_OTHER = ("executor", "backlog", "cluster", "worker", "group")  # no kinds


def kinds() -> tuple[str, ...]:
    """The names of all executors, sorted: the names of the modules in this folder."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name not in _OTHER))


def find(kind: str) -> Callable[..., Executor]:
    """What makes an executor of that kind, called with its options.

    Only the module asked for is imported, so that no kind needs another's library.

    Raises:
        RecipeError: If there is none of that name, or the library it needs is missing.
    """
    if kind not in kinds():
        raise RecipeError(
            f"executor.kind: unknown {kind!r}{closest(kind, kinds())}",
            hint=f"(known: {', '.join(kinds())})",
        )
    try:
        create: Callable[..., Executor] = importlib.import_module(f"{__name__}.{kind}").create
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"executor.kind: {kind!r} needs {error.name}, which is not installed.",
            hint=f"Install it with: pip install 'fusetune[{kind}]'",
        ) from error
    return create
