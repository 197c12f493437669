"""The studies of a run, listed, and copied into a storage of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from fusetune.errors import RunError
from fusetune.optimization.copying import copy_studies
from fusetune.optimization.storage import open_existing, open_storage, quiet, storing
from fusetune.pipeline.display import Display
from fusetune.recipe_file import load
from fusetune.run import RunFolder


@dataclass(frozen=True, slots=True)
class Row:
    """Attributes:
    name: Of the study in the run.
    stored_as: Its name in the storage.
    trials: How many it has.
    complete: How many of them led to values.
    objectives: What its values are.
    """

    name: str
    stored_as: str
    trials: int
    complete: int
    objectives: tuple[str, ...]


def storage_of(path: Path) -> tuple[BaseStorage, str]:
    """The storage of a run, opened for reading, and the prefix of its studies there.

    The run may be going on. The folder of a `fusetune.fuse` is one too.

    Raises:
        RunError: If the folder holds no run, or the run has no trials yet.
    """
    folder = RunFolder(path)
    if not folder.recipe_file.is_file() and not folder.journal.is_file():
        raise RunError(f"{path} holds no run: neither recipe.yaml nor {folder.journal.name}.")
    # The folder of a fusion by the library has a journal alone.
    url = (
        load(folder.recipe_file, of_run=True).storage if folder.recipe_file.is_file() else None
    )
    storage = open_existing(url or folder.journal)
    if url is None:
        return storage, ""
    with storing(), quiet():
        return storage, folder.study_prefix(optuna.get_all_study_names(storage))


def listed(path: Path) -> list[Row]:
    """The studies of a run, by name.

    Raises:
        RunError: As `storage_of`.
    """
    storage, prefix = storage_of(path)
    rows = []
    with storing(), quiet():
        for name in sorted(optuna.get_all_study_names(storage)):
            if name.startswith(prefix):
                study = optuna.load_study(study_name=name, storage=storage)
                states = [t.state for t in study.get_trials(deepcopy=False)]
                complete = states.count(TrialState.COMPLETE)
                objectives = tuple(study.metric_names or ())
                short = name.removeprefix(prefix)
                rows.append(Row(short, name, len(states), complete, objectives))
    return rows


def copy_to(path: Path, target: str, display: Display) -> None:
    """Copy the studies of a run into a storage, as RUN/search, RUN/fuse, ….

    Args:
        path: The run folder.
        target: A URL, or the file of a journal; made if it is not there.
        display: Where to say what was done.

    Raises:
        RunError: If the storage cannot be opened, or has other studies of these names.
    """
    storage, _ = storage_of(path)
    run = path.resolve().name
    names = {row.stored_as: f"{run}/{row.name}" for row in listed(path)}
    found = copy_studies(storage, open_storage(target), names.get)
    display.say(f"Copied {', '.join(found)}.")
