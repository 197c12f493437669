"""A user's own metric of generated texts: `module:function`.

A name in a recipe must not reach any function that Python could import: a command runner of an
installed package would get the generated texts as its arguments. A function is taken from a
file under the working folder, or from a package that says of itself that it holds metrics, by
an entry point in the group `fusetune.metrics`. `locate` finds it without importing anything, so
that a run can say what it would call before that has run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError

GROUP = "fusetune.metrics"
"""Entry points of packages that hold metrics, as `name = "package.module:function"`."""

WHERE = (
    "Give module:function of a file in the folder that you start in, or of a package that "
    f"declares an entry point in the group {GROUP}."
)


@dataclass(frozen=True, slots=True)
class MetricSource:
    """Where the function of a metric is defined, found without importing it.

    Attributes:
        metric: As `module:function`.
        home: The file of a module, else the folder of its package: all of its code is in there.
        place: For people: the file, or the package that declares metrics with its version.
        declared: Whether the package declares this very function, and not only others.
    """

    metric: str
    home: Path
    place: str
    declared: bool

    @property
    def digest(self) -> str:
        """Sha256 of the metric's name and of all Python files of its home."""
        files = sorted(self.home.rglob("*.py")) if self.home.is_dir() else [self.home]
        digest = hashlib.sha256(f"{self.metric}\n{self.home}".encode())
        for file in files:
            digest.update(f"\n{file}\n".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def holds(self, file: str) -> bool:
        """Whether a file is the home, or lies in it."""
        return Path(file).resolve().is_relative_to(self.home)


def locate(path: str) -> MetricSource:
    """Where a metric's function is defined; no code of it runs.

    Args:
        path: "module:function".

    Raises:
        RecipeError: If there is no such module, or it is one that a recipe may not name.
    """
    module, _, name = path.partition(":")
    parts = module.split(".")
    if not all(part.isidentifier() for part in (*parts, name)):
        raise RecipeError(f"The metric {path!r} is not written as module:function.", WHERE)
    if parts[0] in sys.stdlib_module_names:
        raise RecipeError(
            f"The metric {path} is Python's own; a metric is a function of yours.", WHERE
        )
    with _working_folder_last():
        try:
            top = importlib.util.find_spec(parts[0])
        except (ImportError, ValueError):  # a module without a specification, as __main__
            top = None
        spec = top
        for depth in range(2, len(parts) + 1):
            below = spec.submodule_search_locations if spec is not None else None
            spec = (
                None if below is None else PathFinder.find_spec(".".join(parts[:depth]), below)
            )
    if top is None or spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(
            f"The metric {path} cannot be imported: there is no file of a module {module}.",
            WHERE,
        )
    home, file, here = _home(top), Path(spec.origin).resolve(), Path.cwd().resolve()
    declaring = [e for e in entry_points(group=GROUP) if e.module.split(".")[0] == parts[0]]
    if home is not None and file.is_relative_to(home):
        if declaring:
            exactly = any((e.module, e.attr) == (module, name) for e in declaring)
            return MetricSource(path, home, _package(declaring[0]), exactly)
        if home.is_relative_to(here) and not _installed(home):
            return MetricSource(path, home, str(file), declared=False)
    raise RecipeError(
        f"The metric {path} is in {file}, which is neither under the folder that you started "
        f"in ({here}) nor in a package that declares metrics.",
        WHERE,
    )


def _home(top: ModuleSpec) -> Path | None:
    """The file of a module or the folder of a package, links followed; None if it has none."""
    if top.origin is None:
        places = list(top.submodule_search_locations or ())  # a package without __init__.py
        return Path(places[0]).resolve() if len(places) == 1 else None
    file = Path(top.origin)
    return (file if top.submodule_search_locations is None else file.parent).resolve()


def _installed(home: Path) -> bool:
    """Whether a package was installed: an environment may lie in the working folder."""
    return any(part in ("site-packages", "dist-packages") for part in home.parts)


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


@contextmanager
def _working_folder_last() -> Iterator[None]:
    """Modules are also looked for in the working folder, after all others."""
    here = str(Path.cwd())
    sys.path.append(here)
    importlib.invalidate_caches()  # a file that was written a moment ago is found
    try:
        yield
    finally:
        sys.path.remove(here)


def _files_of(function: object) -> Iterator[str]:
    """The files of all code that a function, or what wraps one, is made of."""
    if isinstance(function, functools.partial):
        yield from _files_of(function.func)
    elif not inspect.isroutine(function) and not isinstance(function, type):
        yield from _files_of(type(function).__call__)  # an object that can be called
    else:
        inner = inspect.unwrap(function) if callable(function) else function
        code = getattr(getattr(inner, "__func__", inner), "__code__", None)
        yield "" if code is None else code.co_filename


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
        """Import the function; modules are also looked for in the working folder.

        Args:
            path: "module:function".

        Raises:
            RecipeError: If there is no such module or function, or a recipe may not name it.
        """
        source = locate(path)
        module, _, name = path.partition(":")
        with _working_folder_last():
            try:
                function = getattr(importlib.import_module(module), name)
            except Exception as error:  # whatever the module does when it is imported
                raise RecipeError(
                    f"The metric {path} cannot be imported: {type(error).__name__}: {error}.",
                    hint=WHERE,
                ) from error
        if not callable(function):
            raise RecipeError(f"The metric {path} is a {type(function).__name__}.")
        # A file that says `from subprocess import run` must not hand that out as its own.
        if not source.declared and not all(source.holds(f) for f in _files_of(function)):
            raise RecipeError(
                f"The metric {path} is not defined in {source.place}, only imported there.",
                "Write a function there that calls it.",
            )
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
