"""Every row of the comparison. A file `NAME.py` with a function `NAME` adds a method.

`RIVALS` are methods without a file: the loop of `mobo` with a sampler of Optuna.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from fusetune.errors import RecipeError
from fusetune.optimization import RIVALS

if TYPE_CHECKING:
    from fusetune.methods.method import FusionMethod

_NOT_METHODS = {"choices", "descent", "method", "origin", "search", "steps"}

SAMPLERS = ("mobo", "bo", *RIVALS)
"""Methods that search over w, each with a study of its own."""


def available() -> tuple[str, ...]:
    """The names of all methods, without importing them."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted((set(names) - _NOT_METHODS) | set(RIVALS)))


def find(name: str) -> FusionMethod:
    """The method called `name`.

    Raises:
        RecipeError: If there is none; the message lists the known ones.
    """
    if name in RIVALS:
        return cast("FusionMethod", importlib.import_module(f"{__name__}.search").rival(name))
    if name not in available():
        raise RecipeError(f"Unknown method {name!r}; known: {', '.join(available())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    return cast("FusionMethod", getattr(module, name))
