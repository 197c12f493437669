"""Rows of a comparison that need trainings of their own; a file `NAME.py` has each.

All other rows are methods (`fusetune.methods`) on the trajectory of the fixed λ.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, cast

from fusetune.errors import RecipeError
from fusetune.methods import available as methods
from fusetune.pipeline.procedures.procedure import Procedure
from fusetune.recipe import PROCEDURES
from fusetune.report.content import REFERENCES

OUTER = "bilevel"
"""The procedure that takes a method: `bilevel:swa` is the outer search around `swa`."""


def available() -> tuple[str, ...]:
    """The names of all procedures, without importing them."""
    inner = sorted(set(methods()) - REFERENCES)
    return (*PROCEDURES, *(f"{OUTER}:{method}" for method in inner))


def find(name: str) -> Procedure:
    """The procedure called `name`.

    Raises:
        RecipeError: If there is none; the message lists the known ones.
    """
    if name not in available():
        raise RecipeError(f"Unknown procedure {name!r}; known: {', '.join(available())}.")
    base, _, method = name.partition(":")
    module = importlib.import_module(f"{__name__}.{base}")
    function: Any = getattr(module, base)
    return cast("Procedure", partial(function, method=method) if method else function)
