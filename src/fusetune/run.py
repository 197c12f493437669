"""The run folder: what is complete, whose recipe it holds, and who may write."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusetune.errors import RecipeError, RunError
from fusetune.members.claim import claimed, refuse_links_out
from fusetune.members.disk import write_json, write_text
from fusetune.recipe import Recipe
from fusetune.recipe_file import TEXTS, difference
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


class RunFolder(RunLayout):
    """One run on disk; `claim` creates the folder."""

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a complete stage recorded; None if it is not complete.

        Raises:
            RunError: If the record is damaged.
        """
        path = self.record(stage)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read: {error}.", f"Run `fusetune {stage} --force` again."
            ) from error
        return record

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

    def reset(self, first: str) -> None:
        """Forget stage `first` and all after it (studies are the pipeline's business)."""
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
            self.record(stage).unlink(missing_ok=True)
            for path in owned[stage]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def join_methods(self, recipe: Recipe) -> Recipe:
        """The recipe with the methods of the folder's run too, if it differs in them alone.

        Where the recipe has new ones, the stages fuse and report are forgotten, but not what
        the methods found: only the new ones will run.
        """
        stored = self.stored_recipe()
        if stored is None or set(self.changes(recipe)) != {"fuse.methods"}:
            return recipe
        before = list(stored["fuse"]["methods"])
        methods = list(dict.fromkeys([*before, *recipe.fuse.methods]))
        fuse = recipe.fuse.model_copy(update={"methods": methods})
        joined = recipe.model_copy(update={"fuse": fuse})
        if methods != before:
            self.reopen("fuse", "report")  # before the recipe: a kill in between is mended
            write_text(self.recipe_file, joined.to_yaml())
        return joined

    def study_prefix(self, taken: Iterable[str]) -> str:
        """The prefix of this run's studies in a storage that other runs use too.

        Chosen once and kept in a file, so that a folder that is moved keeps its studies, and
        folders of one name, as `seed-41`, have different ones.

        Args:
            taken: The names of all studies there.
        """
        file = self.path / "studies.json"
        try:
            prefix: str = json.loads(file.read_text(encoding="utf-8"))["prefix"]
        except FileNotFoundError:
            place = self.path.resolve()
            digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
            taken, attempt = set(taken), 1
            prefix = f"{place.parent.name}/{place.name}-{digest}/"
            while any(name.startswith(prefix) for name in taken):  # of a folder since removed
                attempt += 1
                prefix = f"{place.parent.name}/{place.name}-{digest}-{attempt}/"
            write_json(file, {"prefix": prefix})
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{file} cannot be read: {error}.") from error
        return prefix

    def stored_recipe(self) -> dict[str, Any] | None:
        """The recipe of this folder as plain data; None in a new folder."""
        if not self.recipe_file.exists():
            return None
        try:
            data = read_yaml(read_text(self.recipe_file), str(self.recipe_file), texts=TEXTS)
        except RecipeError as error:
            raise RunError(f"The folder's recipe is damaged: {error}") from error
        return data if isinstance(data, dict) else {}

    def changes(self, recipe: Recipe) -> dict[str, str]:
        """Dotted key → "old → new" for all in which the folder's recipe differs and matters."""
        stored = self.stored_recipe()
        changed = {} if stored is None else difference(_completed(stored), recipe.public())
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
            refuse_links_out(self.path)
            yield


def _completed(stored: dict[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the defaults of keys that its version of fusetune did not have."""
    try:
        return Recipe.model_validate(stored).public()
    except ValidationError:  # of a version that knew other keys: what differs is shown
        return stored


def _concerns(stage: str, key: str, recipe: Recipe) -> bool:
    sections = SECTIONS[stage]
    if stage == "search" and recipe.search.objective.startswith("fused"):
        sections = (*sections, "train", "fuse")  # every trial of a bilevel search does both
    return any(key == s or key.startswith(f"{s}.") for s in sections)
