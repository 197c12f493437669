"""The run's work in other processes, on machines that share its disk or fetch what they need.

Only small things travel: recipe, places, λ or w there; values and per-example outcomes back.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusetune.errors import FusetuneError, RunError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.executors.executor import Work
from fusetune.members.disk import locked, write_text
from fusetune.members.fetch import source_of
from fusetune.members.pool import MemberPool
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Bar, Display, silence_library_bars
from fusetune.pipeline.shared import SharedTrainings
from fusetune.recipe import Recipe
from fusetune.run import RunFolder
from fusetune.tasks.task import SplitName

if TYPE_CHECKING:
    from fusetune.pipeline.trial import TrialEvaluation

TOKEN = ".cluster"
"""File of the run folder by which workers know that they see the same one."""


@dataclass(frozen=True)
class Place:
    """Where and what a run is.

    Attributes:
        recipe: Without its storage: workers never write there, and need no password.
        folder: The run folder.
        directory: From which relative paths count.
        token: Content of the folder's `TOKEN`.
        shared: Folder of trainings that several runs share.
    """

    recipe: Recipe
    folder: str
    directory: str
    token: str
    shared: str | None

    @classmethod
    def of(cls, context: Context) -> Place:
        """The place of a run that this process holds."""
        path = context.folder.path.resolve()
        file = path / TOKEN
        if not file.is_file():
            path.mkdir(parents=True, exist_ok=True)
            write_text(file, uuid.uuid4().hex)
        recipe = context.recipe.model_copy(update={"storage": None, "study": None})
        shared = None if context.shared is None else str(context.shared.folder.resolve())
        token = file.read_text(encoding="utf-8")
        return cls(recipe, str(path), os.getcwd(), token, shared)

    def open(self) -> Context:
        """The run's context in this process, which does not hold the folder."""
        silence_library_bars()
        if Path(self.directory).is_dir():
            os.chdir(self.directory)
        shared = None if self.shared is None else SharedTrainings(Path(self.shared))
        # The driver has asked for the user's consent; this machine may not remember it.
        display, folder = Display(quiet=True), RunFolder(self.folder)
        return Context(self.recipe, folder, display, shared, allow_code=True)

    def require_folder(self) -> None:
        """Check that this machine sees the run folder.

        Raises:
            RunError: If not.
        """
        file = Path(self.folder) / TOKEN
        if not file.is_file() or file.read_text(encoding="utf-8") != self.token:
            raise RunError(
                f"The run folder {self.folder} is not there.",
                "Put it on storage that all nodes share, under the same path.",
            )


@dataclass(frozen=True)
class SearchWork:
    """Trains trials of the search.

    Attributes:
        place: Of the run; its folder has to be shared.
        kind: The evaluation.
        data: Fingerprint of each split, which has to be the same everywhere.
    """

    place: Place
    kind: type[TrialEvaluation]
    data: Mapping[str, str]

    @classmethod
    def of(cls, context: Context, kind: type[TrialEvaluation]) -> SearchWork:
        """For the search of this run."""
        return cls(Place.of(context), kind, _fingerprints(context))

    def __call__(self) -> Work:
        """The work; called in the worker."""
        with named():
            self.place.require_folder()
            context = self.place.open()
            if _fingerprints(context) != self.data:
                raise RunError(
                    "The data are others than the driver's.",
                    "Put the same data under the same paths on all nodes, and leave them.",
                )
            evaluate = self.kind(context, context.task.objectives[1], Bar(None, None))
            evaluate.apart = f"-{socket.gethostname()}-{os.getpid()}"
            context.folder.work.mkdir(parents=True, exist_ok=True)
            # The first worker makes the cache of frozen layers, the others open it.
            with locked(context.folder.work / ".parts"):
                _ = evaluate.parts

        return evaluate


@dataclass(frozen=True)
class FusionWork:
    """Makes an evaluator of the run's members; see `evaluation.remote`.

    Attributes:
        place: Of the run; its folder is needed only if the members lie in it.
        members: Path or URL and sha256 of each.
        split: On which to evaluate.
        data: Fingerprint of the tokenised split, which has to be the same everywhere.
    """

    place: Place
    members: tuple[tuple[str, str], ...]
    split: SplitName
    data: str

    @classmethod
    def of(
        cls, context: Context, pool: MemberPool, split: SplitName
    ) -> Callable[[], Evaluator]:
        """For the members of this run."""
        paths = [source_of(m.path) or str(m.path.resolve()) for m in pool.members]
        digests = [m.sha256 for m in pool.members]
        members = tuple(zip(paths, digests, strict=True))
        data = context.scorer(split).encoded.fingerprint
        return cls(Place.of(context), members, split, data)

    def __call__(self) -> Evaluator:
        """The evaluator; called in the worker."""
        from fusetune.pipeline.existing import open_recorded
        from fusetune.pipeline.workbench import Workbench

        with named():
            context = self.place.open()
            if context.scorer(self.split).encoded.fingerprint != self.data:
                raise RunError(
                    f"The {self.split} split is another one than the driver's.",
                    "Put the same data and tokenizer under the same paths on all nodes.",
                )
            paths, digests = zip(*self.members, strict=True)
            base = functools.partial(context.base, spread=True)
            pool = open_recorded({"paths": paths, "sha256": digests}, base)
            bench = Workbench(pool, context, None)
            return bench.evaluator(self.split)


def _fingerprints(context: Context) -> dict[str, str]:
    return {name: split.fingerprint for name, split in context.task.splits.items()}


@contextmanager
def named() -> Iterator[None]:
    """Say of errors in which machine they were found."""
    try:
        yield
    except FusetuneError as error:
        message = f"On {socket.gethostname()}: {error.message}"
        raise type(error)(message, error.hint) from error
