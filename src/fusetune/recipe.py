"""The recipe: one frozen and validated tree; `recipe_file` reads it.

Only `run`, `pipeline` and `cli` know these classes; everything else takes plain arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import Field, model_validator

from fusetune.errors import closest
from fusetune.recipe_sections import (
    CompareSection,
    ExecutorSection,
    ModelSection,
    Section,
    TaskSection,
    Variant,
    number_problems,
)
from fusetune.recipe_stages import PROCEDURES, FuseSection, SearchSection, TrainSection
from fusetune.redaction import tree_without_secrets

__all__ = ["PROCEDURES", "Recipe", "Variant"]


GUESSED = 20  # unknown names for which a known one is looked up; that takes a while


class Recipe(Section):
    """Everything that a run depends on."""

    seed: int = Field(41, ge=0, lt=2**32)
    task: TaskSection
    model: ModelSection
    search: SearchSection
    train: TrainSection = Field(default_factory=TrainSection)
    fuse: FuseSection = Field(default_factory=FuseSection)
    compare: CompareSection = Field(default_factory=CompareSection)
    executor: ExecutorSection = Field(default_factory=ExecutorSection)
    storage: str | None = Field(
        None, description="Optuna storage URL; the run folder's journal."
    )
    study: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Name of a search that several runs share, in a storage by URL.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = [
            *_free_form_problems(self),
            *_unknown_arguments("train.arguments", self.train.arguments),
            *_unknown_arguments("search.space", self.search.space),
            *_argument_problems(self),
            *_objective_problems(self.search.objective),
            *_trajectory_problems(self),
            *_spread_problems(self),
            *_checkpoint_problems(self),
            *_lora_problems(self),
        ]
        base = int(self.fuse.base_member)
        if self.fuse.evaluations < self.train.members + base:
            problems.append(
                f"fuse.evaluations: {self.fuse.evaluations} is less than train.members: "
                f"{self.train.members}{' and the base' * base}; every member is evaluated once"
            )
        if base and self.fuse.adapters == "factors":
            problems.append(
                "fuse.base_member: it has no factors to average; leave out fuse.adapters"
            )
        if self.study is not None and self.storage is None:
            problems.append("study: a search is shared in a database; give its URL as storage")
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @property
    def trains_in_trials(self) -> bool:
        """Whether each trial of the search is a full training with its λ."""
        search = self.search
        return (
            search.trials > 0
            and search.variant == "full"
            and search.epochs in (None, self.train.epochs)
        )

    @property
    def usual_rate(self) -> float | None:
        """The learning rate that the search's choice leans to; None where it takes the best.

        What a light or short trial finds is a promise for another training. Where the trial is
        the training itself, or its members were fused, its value is what it says; and a rate
        that the recipe does not name, or that lies outside of the space, says nothing.
        """
        search, named = self.search, self.train.arguments.get("learning_rate")
        space = search.space.get("learning_rate")
        short = not self.trains_in_trials and search.objective == "best_member"
        if search.choose != "cautious" or not short or named is None or space is None:
            return None
        return float(named) if space.spans(float(named)) else None

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain data, every default included."""
        return self.model_dump(mode="json", exclude_none=False)

    def public(self) -> dict[str, Any]:
        """The same without passwords and tokens: what may be kept and shown."""
        tree: dict[str, Any] = tree_without_secrets(self.dump())
        return tree

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, without passwords and tokens."""
        text: str = yaml.safe_dump(self.public(), sort_keys=False, allow_unicode=True, width=96)
        return text


def _lora_problems(recipe: Recipe) -> list[str]:
    """What of a recipe does not go together with model.lora, or without it."""
    model, fuse, variant = recipe.model, recipe.fuse, recipe.search.variant
    lora, light = model.lora, variant if isinstance(variant, Variant) else None
    low = light is not None and light.lora_rank is not None
    problems = []
    if lora is None:
        if low:
            problems.append("search.variant.lora_rank: of model.lora, which is not set")
        if model.quantization != "none":
            problems.append(
                "model.quantization: its weights cannot be trained, only adapters on them; "
                "set model.lora"
            )
        if fuse.export != "merged" or fuse.adapters != "exact":
            problems.append("fuse.export, fuse.adapters: for adapters; model.lora is not set")
        return problems
    if fuse.averaging != "auto" and (fuse.export != "merged" or fuse.adapters != "exact"):
        problems.append(
            f"fuse.averaging: {fuse.averaging} is of merged weights; fuse.export and "
            "fuse.adapters need auto"
        )
    if lora.dora and (fuse.adapters == "factors" or ":" in fuse.export):
        problems.append(
            "model.lora.dora: averages of DoRA are exact, and not cut to a rank; leave "
            "fuse.adapters at exact and fuse.export at merged or adapter"
        )
    if light is not None and not low:
        problems.append(
            "search.variant.freeze_layers: with model.lora all layers are frozen; "
            "give lora_rank"
        )
    elif light is not None and light.rank_of(lora.rank) >= lora.rank:
        problems.append(
            f"search.variant.lora_rank: {light.rank_of(lora.rank)} is not below "
            f"model.lora.rank: {lora.rank}"
        )
    return problems + quantisation_problems(model.quantization, recipe)


def quantisation_problems(quantised: str, recipe: Recipe) -> list[str]:
    """What of a recipe needs weights that can be written into, and a quantised base has not.

    Args:
        quantised: "4bit" or "8bit"; "none" of a plain base, which has no such problems.
        recipe: Of the run.
    """
    if quantised == "none":
        return []
    fuse, problems = recipe.fuse, []
    if "fisher" in (*fuse.rows, recipe.search.objective.removeprefix("fused:")):
        problems.append(
            "fuse.methods, search.objective: fisher follows gradients of the base's own "
            "weights, which are quantised; leave it out"
        )
    if fuse.averaging != "auto":
        problems.append(
            f"fuse.averaging: {fuse.averaging} writes averages into the base's weights; "
            "adapters are averaged beside them with auto"
        )
    if fuse.compile:
        problems.append("fuse.compile: quantised layers are not compiled; leave it out")
    return problems


def _objective_problems(objective: str) -> list[str]:
    from fusetune.methods import available
    from fusetune.report.content import REFERENCES

    inner = (method for method in available() if method not in REFERENCES)
    known = ["best_member", "fused", *(f"fused:{method}" for method in inner)]
    if objective in known:
        return []
    return [f"search.objective: unknown {objective!r}{closest(objective, known)}"]


def _spread_problems(recipe: Recipe) -> list[str]:
    """What does not go together with layers on several devices."""
    if recipe.model.device_map is None:
        return []
    fuse = recipe.fuse
    wrong = {
        "fuse.averaging": fuse.averaging not in ("auto", "streaming"),
        "fuse.candidates_per_pass": fuse.candidates_per_pass not in ("auto", 1),
        "fuse.compile": fuse.compile,
        "model.quantization": recipe.model.quantization != "none",
    }
    return [
        f"model.device_map: {name} is for a model on one device; leave it out"
        for name, given in wrong.items()
        if given
    ]


def _trajectory_problems(recipe: Recipe) -> list[str]:
    train, problems = recipe.train, []
    count = train.trajectories.count
    if count > 1 and train.trajectories.source == "trials" and recipe.search.trials < count:
        problems.append(
            f"train.trajectories: the best {count} trials of a search that has "
            f"{recipe.search.trials}; raise search.trials, or take source: seeds"
        )
    if count > 1 and "ema" in recipe.fuse.methods:
        problems.append(
            f"fuse.methods: ema weighs the members along one trajectory; there are {count}"
        )
    if train.members_each < 2 and recipe.search.objective.startswith("fused"):
        problems.append(
            "train.members: search.objective fuses the members of each trial, at least 2; "
            f"there is {train.members_each} per trajectory"
        )
    return problems


def _checkpoint_problems(recipe: Recipe) -> list[str]:
    """What of a recipe does not go together with members that exist already."""
    if recipe.train.checkpoints is None:
        return []
    wrong = {
        "search.trials": recipe.search.trials > 0,
        "search.variant": recipe.search.variant != "full",
        "train.arguments": bool(recipe.train.arguments.keys() - {"report_to", "run_name"}),
        "train.trajectories": recipe.train.trajectories.count > 1,
    }
    problems = [
        f"train.checkpoints: nothing is trained, so that {key} has no meaning"
        + ("; set it to 0" if key == "search.trials" else "; leave it out")
        for key, found in wrong.items()
        if found
    ]
    if "model_stock" in recipe.fuse.rows:
        problems.append(
            "fuse.methods: model_stock needs the model that the training began with, head "
            "included, which train.checkpoints do not tell"
        )
    return problems


def _free_form_problems(recipe: Recipe) -> list[str]:
    return [
        *number_problems("train.arguments", recipe.train.arguments),
        *number_problems("task.options", recipe.task.options),
        *number_problems("executor", recipe.executor.model_extra or {}),
    ]


def _argument_problems(recipe: Recipe) -> list[str]:
    """Values that are not of the type of their field of TrainingArguments."""
    values = [(f"train.arguments.{n}", n, v) for n, v in recipe.train.arguments.items()]
    for name, found in recipe.search.space.items():
        tried = found.choices if found.choices is not None else [found.low, found.high]
        values += [(f"search.space.{name}", name, value) for value in tried]
    if not values:
        return []
    from fusetune.training.arguments import type_problem

    problems = [(path, type_problem(name, value)) for path, name, value in values]
    return list(dict.fromkeys(f"{path}: {problem}" for path, problem in problems if problem))


def _unknown_arguments(path: str, names: Iterable[str]) -> list[str]:
    """Names that are no field of TrainingArguments."""
    names = list(names)
    if not names:
        return []
    from transformers import TrainingArguments

    from fusetune.training.arguments import ALIASES, OWN

    known = [f.name for f in dataclasses.fields(TrainingArguments)] + list(ALIASES)
    unknown = [name for name in names if name not in known]
    problems = [
        f"{path}.{name}: no field of TrainingArguments{closest(name, known)}"
        for name in unknown[:GUESSED]
    ]
    problems += [f"{path}.{name}: no field of TrainingArguments" for name in unknown[GUESSED:]]
    return problems + [f"{path}.{n}: set by {OWN[n]}" for n in names if n in OWN]
