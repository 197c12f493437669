"""`fusetune storage copy`: the studies of a run, or of a whole storage, to another place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from fusetune.errors import RunError
from fusetune.optimization.copying import copy_studies
from fusetune.optimization.storage import open_storage, quiet, storing, without_password
from fusetune.run import RunFolder


def copy_storage(source: str, target: str) -> list[str]:
    """Copy all studies; returns a line for each.

    The studies of a run folder's journal get the run's prefix in a database, by which the run
    finds them there with `--storage`, and lose it on the way back.

    Args:
        source: A run folder, a journal file or a URL.
        target: The same.

    Raises:
        RunError: If a place cannot be opened or is in use, or the target has other studies of
            these names.
    """
    with ExitStack() as held:
        there, here = _folder(source, held), _folder(target, held)
        if there is not None and not there.journal.is_file():
            raise RunError(f"{source} has no journal of trials.", "Give the storage's URL.")
        old = _open(source, there, new=False)
        new = _open(target, here, new=True)
        found = copy_studies(old, new, _rename(there, here, new))
    shown = without_password(target) if "://" in target else target
    if not found:
        return [f"There is no study to copy in {_shown(source)}."]
    return [f"{shown}: {name}, {count} trials" for name, count in found.items()]


def _folder(place: str, held: ExitStack) -> RunFolder | None:
    """The run folder that a place is, claimed as long as the studies are copied."""
    if "://" in place or not Path(place).is_dir():
        return None
    folder = RunFolder(place)
    held.enter_context(folder.claim())
    return folder


def _open(place: str, folder: RunFolder | None, *, new: bool) -> BaseStorage:
    if folder is not None:
        return open_storage(folder.journal)
    if "://" not in place and not new and not Path(place).is_file():
        raise RunError(f"{place} does not exist.", "Give a run folder, a journal or a URL.")
    return open_storage(place)


def _rename(
    there: RunFolder | None, here: RunFolder | None, target: BaseStorage
) -> Callable[[str], str | None]:
    """How studies are called in the target."""
    if there is not None and here is None:
        with storing(), quiet():
            prefix = there.study_prefix(optuna.get_all_study_names(target))
        return lambda name: prefix + name
    if here is not None and there is None:
        prefix = here.study_prefix(())
        return lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None
    return lambda name: name


def _shown(place: str) -> str:
    return without_password(place) if "://" in place else place
