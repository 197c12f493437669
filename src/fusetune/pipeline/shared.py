"""Trainings that several runs of a comparison need, done once and handed on.

`hpbo`, `bilevel` and `bilevel:METHOD` begin their searches with the same λ, and train it with
the same seed: the trajectories are the same to the bit. What is done with them differs. So are
those of a run without a search, and of one whose search came back to the recipe's own λ.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from fusetune.files.record import FileName, Shape, read_record, shaped
from fusetune.members.disk import link, replaced_folder, write_json
from fusetune.members.manifest import read_manifest
from fusetune.pipeline.kept import KeptTrial
from fusetune.recipe import Recipe
from fusetune.run import RunFolder
from fusetune.tasks.task import Task
from fusetune.training.arguments import complete

RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class SharedTraining:
    """A finished training.

    Attributes:
        trial: Its λ, members and steps.
        history: (step, objective values on validation), in order, as it trained.
        seconds: What it took, the validations included.
        error: Standard error of the best of the values in the primary metric; None where the
            choice of the trial needs none, as of trainings that are handed on.
    """

    trial: KeptTrial
    history: tuple[tuple[int, Mapping[str, float]], ...]
    seconds: float
    error: float | None = None


class SharedTrainings:
    """A folder with one sub-folder per training, named by all that decides its result.

    Members are linked, not copied, where the file system can: they take no space twice.

    Args:
        folder: Made when the first training is kept.
        runs: What one of them has trained in full is found where it lies.
        trials: Whether trainings of trials are kept as well.
    """

    def __init__(
        self,
        folder: Path,
        runs: Mapping[RunFolder, Recipe] = MappingProxyType({}),
        *,
        trials: bool = True,
    ) -> None:
        self.folder = folder
        self.runs = runs
        self.trials = trials

    def keep(self, recipe: Recipe, members: Path, training: SharedTraining) -> None:
        """Hand on a trial's training whose members are the folders in `members`."""
        if not self.trials:
            return
        target = self._of(recipe, training.trial.params)
        if target.is_dir():
            return
        with replaced_folder(target) as new:
            shutil.copytree(members, new / "members", copy_function=link)
            write_json(new / RECORD, asdict(training))

    def take(
        self, recipe: Recipe, params: Mapping[str, Any], members: Path
    ) -> SharedTraining | None:
        """What a run trained with this λ; its members are then in `members`.

        Args:
            recipe: Of the run that needs the training.
            params: λ.
            members: A folder that does not exist yet.
        """
        source = self._of(recipe, params)
        training = read_record(source / RECORD, _training)
        if training is None:
            return None
        with replaced_folder(members) as new:
            shutil.copytree(source / "members", new, copy_function=link, dirs_exist_ok=True)
        return training

    def find(
        self, recipe: Recipe, params: Mapping[str, Any], members: Path
    ) -> SharedTraining | None:
        """As `take`; also of what other runs trained in full, which has no history.

        A run that is at work itself has no finished training yet.
        """
        found = self.take(recipe, params, members)
        if found is not None:
            return found
        wanted = _identity(recipe, params)
        for run, other in self.runs.items():
            trained = _trained(run)
            if trained is None or _identity(other, trained["params"]) != wanted:
                continue
            folders = [run.members / name for name in trained["members"]]
            manifests = [read_manifest(folder) for folder in folders]
            steps = tuple(manifest.step for manifest in manifests if manifest is not None)
            if len(steps) < len(folders):  # deleted in the meantime
                continue
            with replaced_folder(members) as new:
                for folder in folders:
                    shutil.copytree(folder, new / folder.name, copy_function=link)
            trial = KeptTrial(params, steps, trained["steps"], trained["start"])
            return SharedTraining(trial, (), trained["seconds"])
        return None

    def evaluations(self, own: Path) -> list[Path]:
        """The stores of evaluations of the other runs."""
        folders = [run.evaluations for run in self.runs]
        return [folder for folder in folders if folder != own]

    def forget(self) -> None:
        """Remove everything, when no run is left that could need it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, recipe: Recipe, params: Mapping[str, Any]) -> Path:
        return self.folder / f"training-{_identity(recipe, params)[:16]}"


class _Training(Shape):
    """A trajectory of stages/train.json, as far as another run can take it over."""

    params: dict[str, Any]
    members: list[FileName]
    steps: int
    start: str | None = None
    seconds: float
    from_search: bool
    attempts: list[dict[str, Any]]


class _Trainings(Shape):
    """stages/train.json."""

    trajectories: list[_Training] = Field(default_factory=list)


class _Shared(Shape):
    """training.json."""

    trial: dict[str, Any]
    history: list[tuple[int, dict[str, float]]]
    seconds: float


def _training(content: Any) -> SharedTraining:
    """The training of a record."""
    known = _Shared.model_validate(content, strict=False)  # JSON knows no tuples
    return SharedTraining(KeptTrial.from_json(known.trial), tuple(known.history), known.seconds)


def search_identity(recipe: Recipe, task: Task) -> str:
    """Of everything that the trials of a search depend on, but their number.

    What is chosen among them in the end is no part of it.

    The data count as what they are, not as where they lie: several machines may search
    together.
    """
    data = recipe.dump()
    data["task"]["data"] = {name: split.fingerprint for name, split in task.splits.items()}
    for key in ("trials", "choose"):
        data["search"].pop(key)
    keys = ["seed", "task", "model", "search"]
    if recipe.trains_in_trials or recipe.search.objective != "best_member":
        keys += ["train", "fuse"]
    else:
        data["train"] = {key: data["train"][key] for key in ("epochs", "arguments")}
        keys.append("train")
    text = json.dumps({key: data[key] for key in keys}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def needed_twice(recipes: Sequence[Recipe]) -> bool:
    """Whether more than one of the runs searches with full trainings."""
    return sum(recipe.trains_in_trials for recipe in recipes) > 1


def _trained(run: RunFolder) -> dict[str, Any] | None:
    """The record of a run's only training, if it was one from beginning to end."""
    stage = read_record(run.record("train"), shaped(_Trainings)) or {}
    trajectories = stage.get("trajectories", ())
    if len(trajectories) != 1:
        return None
    record: dict[str, Any] = trajectories[0]
    given_up = len(record["attempts"]) > 1
    return None if record["from_search"] or given_up else record


def _identity(recipe: Recipe, params: Mapping[str, Any]) -> str:
    """Of everything that a full training of this λ, and its members, depend on."""
    data = recipe.dump()
    arguments = complete({**data["train"]["arguments"], **params})
    train = {k: v for k, v in data["train"].items() if k != "retries"}
    train["arguments"] = arguments
    task = {k: v for k, v in data["task"].items() if k != "metrics"}  # no training asks them
    decides = {"seed": data["seed"], "task": task, "model": data["model"]}
    text = json.dumps({**decides, "train": train}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
