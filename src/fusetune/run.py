"""The run folder: what is complete, whose recipe it holds, and who may write."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from fusetune.errors import RecipeError, RunError
from fusetune.files.record import FileName, Shape, mapping, read_record, shaped
from fusetune.members.claim import claimed
from fusetune.members.disk import remove, write_json
from fusetune.recipe import Recipe
from fusetune.recipe_file import TEXTS, difference, without_defaults, without_removed
from fusetune.recipe_yaml import read_text, read_yaml
from fusetune.run_layout import RunLayout

STAGES = ("search", "train", "fuse", "report")

# The sections of the recipe that each stage is the first to depend on.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "search": ("seed", "task", "model", "search", "train.epochs", "train.arguments"),
    "train": ("train",),
    "fuse": ("fuse",),
    "report": (),
}
# Where things are computed and kept, and what only a comparison of runs asks for.
NEUTRAL = ("executor", "storage", "study", "compare")
REPORTING = ("train.arguments.report_to", "train.arguments.run_name")


RESTORE = "Restore it from a copy, or remove it: the run then goes on by the recipe you give."


class _Prefix(Shape):
    """studies.json."""

    prefix: str


class _Search(Shape):
    """stages/search.json."""

    params: dict[str, Any]
    trial: int | None = None
    seconds: float
    trainings: int = 0
    evaluations: int = 0


class AttemptShape(Shape):
    """One attempt of a trajectory."""

    learning_rate: float
    value: float | None
    promised: float | None
    kept: bool
    samples: list[float] = Field(default_factory=list)


class Trained(Shape):
    """One trajectory of stages/train.json; alone, the file beside its checkpoints."""

    params: dict[str, Any]
    steps: int
    members: list[FileName]
    seconds: float
    start: str | None = None
    trial: int | None = None
    from_search: bool = False
    attempts: list[AttemptShape] = Field(default_factory=list)


class _Train(Shape):
    """stages/train.json."""

    params: dict[str, Any]
    steps: int | None = None
    members: list[str]
    paths: list[str] = Field(default_factory=list)
    sha256: list[str] = Field(default_factory=list)
    seconds: float
    trainings: int = 1
    evaluations: int = 0
    trajectories: list[Trained] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_digest_each(self) -> _Train:
        if self.paths and not len(self.paths) == len(self.sha256) == len(self.members):
            raise ValueError("members, paths and sha256 have other lengths")
        return self


class _Cost(Shape):
    """Seconds and bytes of reading or writing models."""

    seconds: float
    bytes: int


class MethodResult(Shape):
    """What a method chose: a file of methods/, and the entries of stages/fuse.json."""

    point: dict[str, Any]
    values: dict[str, float]
    evaluations: int
    seconds: float
    details: dict[str, Any] = Field(default_factory=dict)
    choices: dict[str, MethodResult] = Field(default_factory=dict)


class _Fuse(Shape):
    """stages/fuse.json."""

    chosen: str
    methods: dict[str, MethodResult]
    load: _Cost
    write: _Cost
    notes: list[str] = Field(default_factory=list)
    adapters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _chosen_is_there(self) -> _Fuse:
        if self.chosen not in self.methods:
            raise ValueError(f"there is no method {self.chosen!r}, which was chosen")
        return self


SHAPES: Mapping[str, type[Shape]] = {
    "search": _Search,
    "train": _Train,
    "fuse": _Fuse,
    "report": Shape,
}
EXTENSIBLE = ("search.trials", "fuse.evaluations", "fuse.methods")
"""Keys by which a recipe may ask for more of what a folder's run has begun."""


@dataclass(frozen=True, slots=True)
class Extension:
    """More of the same in a run folder.

    Attributes:
        recipe: That runs then.
        stages: Which are not complete any more; what they found is kept.
        budget: Whether the methods of fusing have more evaluations.
    """

    recipe: Recipe
    stages: tuple[str, ...]
    budget: bool


class RunFolder(RunLayout):
    """One run on disk; `claim` creates the folder."""

    def done(self, stage: str) -> Mapping[str, Any] | None:
        """Whether a stage is complete: what it recorded, or None; see `recorded` to use it.

        Raises:
            RunError: If the record is no JSON object.
        """
        return read_record(self.record(stage), mapping, again(stage))

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """What a complete stage recorded, of the shape that it has to have; None if it is not.

        Raises:
            RunError: If the record is damaged.
        """
        return read_record(self.record(stage), shaped(SHAPES[stage]), again(stage))

    def check_records(self) -> None:
        """Find damaged records before any long work starts.

        Raises:
            RunError: If there is one.
        """
        for stage in STAGES:
            self.recorded(stage)

    def drop_damaged(self, first: str) -> None:
        """Remove damaged records of stage `first` and of all after it, which start anew."""
        for stage in STAGES[STAGES.index(first) :]:
            try:
                self.recorded(stage)
            except RunError:
                self.record(stage).unlink()

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Record a stage as complete, durably; the last thing that a stage does."""
        path = self.record(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)

    def lost(self, stage: str) -> list[Path]:
        """Results of a complete stage that are gone, as after tidying up by hand.

        Members are not looked for: they may be removed once the model is written.
        """
        results = {"fuse": [self.fused], "report": [self.results, self.report]}
        return [path for path in results.get(stage, []) if not path.exists()]

    def reopen(self, *stages: str) -> None:
        """Take stages for unfinished, the last one first, and keep what they found."""
        for stage in sorted(stages, key=STAGES.index, reverse=True):
            self.record(stage).unlink(missing_ok=True)

    def reset(self, first: str, *, keep: Collection[Path] = ()) -> None:
        """Forget stage `first` and all after it (studies are the pipeline's business).

        The records go last stage first: a stage is complete only while those before it are.

        Args:
            first: The stage.
            keep: What is left alone.
        """
        self.reopen(*STAGES[STAGES.index(first) :])
        owned = {
            "search": (
                self.work,
                self.evaluations,
                self.starts / "search.json",
                *self.logs.glob("trial-*"),
            ),
            "train": (
                self.work,
                self.members,
                self.converted,
                self.evaluations,
                *self.logs.glob("train*"),
            ),
            "fuse": (
                self.fused,
                self.base_member,
                self.methods,
                self.front,
                self.starts / "fuse.json",
                *self.logs.glob("fuse-*"),
                *self.path.glob("landscape*"),
            ),
            "report": (self.results, self.report),
        }
        for stage in STAGES[STAGES.index(first) :]:
            for path in owned[stage]:
                if path not in keep:
                    remove(path)

    def extension(self, recipe: Recipe, *, join: bool = False) -> Extension | None:
        """What a recipe adds to the folder's run, if it asks for more of the same and no more.

        More of the same is a search of more trials, more evaluations of w, and further
        methods. All that was found stays, and none of it is done again.

        Args:
            recipe: That is to run.
            join: Whether the folder's methods that the recipe does not name run as well.

        Returns:
            None where nothing differs, or where something else does.
        """
        stored, changed = self.stored_recipe(), set(self.changes(recipe))
        if stored is None or not changed or not changed.issubset(EXTENSIBLE):
            return None
        known = _completed(stored)
        before, methods = list(known["fuse"]["methods"]), list(recipe.fuse.methods)
        if join:
            methods = list(dict.fromkeys([*before, *methods]))
        # The budget of the inner searches of a bilevel search is another one then.
        inner = recipe.search.objective.startswith("fused")
        more = {
            "search.trials": recipe.search.trials > known["search"]["trials"] > 0,
            "fuse.evaluations": recipe.fuse.evaluations > known["fuse"]["evaluations"]
            and not (inner and recipe.search.fused_evaluations is None),
            "fuse.methods": set(methods) > set(before) or (join and methods == before),
        }
        if not all(more[key] for key in changed):
            return None
        if methods == before:
            changed.discard("fuse.methods")
        stages = ("search",) * ("search.trials" in changed)
        stages += ("fuse",) * bool(changed - {"search.trials"}) + ("report",) * bool(changed)
        fuse = recipe.fuse.model_copy(update={"methods": methods})
        joined = recipe.model_copy(update={"fuse": fuse})
        return Extension(joined, stages, "fuse.evaluations" in changed)

    def extend(self, extension: Extension) -> None:
        """Take for unfinished what an extension adds to, and keep what was found.

        The recipe is written after it: a kill in between is mended by the next start.
        """
        self.reopen(*extension.stages)
        if extension.budget:  # trials and evaluations stay: what they gave is read from there
            for path in self.methods.glob("*.json"):
                path.unlink()

    def study_prefix(self, taken: Iterable[str]) -> str:
        """The prefix of this run's studies in a storage that other runs use too.

        Chosen once and kept in a file, so that a folder that is moved keeps its studies, and
        folders of one name, as `seed-41`, have different ones.

        Args:
            taken: The names of all studies there.
        """
        file = self.path / "studies.json"
        advice = "Restore it from a copy: the run's studies in the storage are found by it."
        stored = read_record(file, shaped(_Prefix), advice)
        if stored is not None:
            prefix: str = stored["prefix"]
        else:
            place = self.path.resolve()
            digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
            taken, attempt = set(taken), 1
            prefix = f"{place.parent.name}/{place.name}-{digest}/"
            while any(name.startswith(prefix) for name in taken):  # of a folder since removed
                attempt += 1
                prefix = f"{place.parent.name}/{place.name}-{digest}-{attempt}/"
            write_json(file, {"prefix": prefix})
        return prefix

    def stored_recipe(self) -> dict[str, Any] | None:
        """The recipe of this folder as plain data; None in a new folder."""
        if not self.recipe_file.exists():
            return None
        try:
            data = read_yaml(read_text(self.recipe_file), str(self.recipe_file), texts=TEXTS)
        except RecipeError as error:
            raise RunError(
                f"The folder's recipe is damaged: {error.message}", RESTORE
            ) from error
        if not isinstance(data, dict):
            raise RunError(f"{self.recipe_file} holds no recipe.", RESTORE)
        return without_defaults(data)

    def changes(self, recipe: Recipe) -> dict[str, str]:
        """Dotted key → "old → new" for all in which the folder's recipe differs and matters."""
        stored = self.stored_recipe()
        if stored is None:
            return {}
        changed = difference(_completed(stored), recipe.public())
        changed |= without_removed(stored)[1]
        return {
            k: v
            for k, v in changed.items()
            if k.split(".")[0] not in NEUTRAL and k not in REPORTING
        }

    def check_recipe(self, recipe: Recipe, *, stage: str | None, force: bool) -> str | None:
        """Compare the folder's recipe with the one that is to run.

        Args:
            recipe: The recipe that is to run.
            stage: The one stage that is to run; None for all.
            force: Whether stages may be started anew.

        Returns:
            The first stage that has to be started anew, if any.

        Raises:
            RunError: If the folder belongs to another recipe and `force` does not cover
                what differs.
        """
        changed = self.changes(recipe)
        affected = [s for s in STAGES if any(_concerns(s, key, recipe) for key in changed)]
        first = affected[0] if affected else None
        if changed and not force:
            raise RunError(
                f"{self.path} holds a run of another recipe; these keys differ:\n"
                + "\n".join(f"  {key}: {change}" for key, change in changed.items())
                + "\n",
                "Give another folder with --out, or --force to start the stages that depend "
                "on them anew.",
            )
        if not force:
            return None
        if first and stage and STAGES.index(first) < STAGES.index(stage):
            raise RunError(
                f"These changes concern the stage {first}, which comes before {stage}: "
                f"{', '.join(changed)}.",
                f"Run `fusetune {first} --force` first, or `fusetune run --force`.",
            )
        return stage or first or STAGES[0]

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder; released when the process ends, however it ends.

        Raises:
            RunError: If another process holds it, it cannot be written to, or a link in it
                leads out of it.
        """
        with claimed(self.path, "The run folder"):
            yield


def again(stage: str) -> str:
    """The advice that stands behind the message on a damaged record of a stage."""
    return (
        f"Remove it and run again, or run `fusetune {stage} RECIPE --force`: the stage is then "
        "done again from what else is stored."
    )


def _completed(stored: dict[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the keys that this version has, defaults where it has none."""
    stored, _ = without_removed(stored)
    try:
        return Recipe.model_validate(stored).public()
    except ValidationError:  # of a version that knew other keys: what differs is shown
        return stored


def _concerns(stage: str, key: str, recipe: Recipe) -> bool:
    sections = SECTIONS[stage]
    if stage == "search" and recipe.search.objective.startswith("fused"):
        sections = (*sections, "train", "fuse")  # every trial of a bilevel search does both
    return any(key == s or key.startswith(f"{s}.") for s in sections)
