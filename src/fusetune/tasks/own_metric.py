"""A user's own metric of generated texts: `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A function of texts and references; higher is better.

    It gives either one number per example, whose mean is the metric, or one number for all
    of them. The second has no share of each example: on a bootstrap sample it is called
    again, with the texts that the sample has.

    Attributes:
        name: The function's name.
        function: (n texts, n lists of references) → n numbers, or one.
    """

    name: str
    function: Callable[[list[str], list[list[str]]], Any]

    @classmethod
    def load(cls, path: str) -> OwnMetric:
        """Import the function; modules are also looked for in the working directory.

        Args:
            path: "module:function".

        Raises:
            RecipeError: If there is no such module or function.
        """
        module, _, name = path.partition(":")
        if module.partition(".")[0] in sys.stdlib_module_names:
            raise RecipeError(
                f"The metric {path} is Python's own; a metric is a function of yours."
            )
        here = str(Path.cwd())
        sys.path.append(here)
        try:
            function = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever the module does when it is imported
            raise RecipeError(
                f"The metric {path} cannot be imported: {type(error).__name__}: {error}.",
                hint="Give module:function, with the module installed or in this folder.",
            ) from error
        finally:
            sys.path.remove(here)
        if not callable(function):
            raise RecipeError(f"The metric {path} is a {type(function).__name__}.")
        return cls(name, function)

    def measure(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        """One column, `n x 1`; NaN if the function gives one number for all.

        Raises:
            RecipeError: If it gives something else.
        """
        found = self._call(texts, references)
        if found.ndim == 0:
            return np.full((len(texts), 1), np.nan)
        return found.reshape(-1, 1)

    def whole(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """The metric over all texts.

        Raises:
            RecipeError: If the function gives neither one number nor one per text.
        """
        return float(self._call(texts, references).mean())

    def _call(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        given = self.function(list(texts), [list(golds) for golds in references])
        try:
            found = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            found = np.empty((0, 0))
        if found.ndim != 0 and found.shape != (len(texts),):
            raise RecipeError(
                f"The metric {self.name} must give one number, or one per text; got a "
                f"{type(given).__name__} for {len(texts)} texts."
            )
        return found
