"""The recipe: one frozen and validated tree; `recipe_file` reads it.

Only `run`, `pipeline` and `cli` know these classes; everything else takes plain arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, field_validator, model_validator

from fusetune.errors import RecipeError, closest
from fusetune.recipe_sections import (
    CompareSection,
    ExecutorSection,
    ExportText,
    ModelSection,
    PrefixCacheSection,
    Range,
    Section,
    TaskSection,
    Variant,
    lora_problems,
)

__all__ = ["PROCEDURES", "Recipe", "Variant"]

PROCEDURES = ("grid", "hpbo", "swa_cyclic", "bilevel", "bomf")
"""Rows of a comparison that need trainings of their own; `pipeline.procedures` has them."""


class SearchSection(Section):
    """The outer search, over the fine-tuning hyper-parameters λ."""

    trials: int = Field(10, ge=0, description="0 trains with train.arguments as they are.")
    objective: str = Field(
        "best_member", description="best_member, fused, or fused:METHOD (bilevel)."
    )
    variant: Variant | Literal["full"] = "full"
    prefix_cache: PrefixCacheSection | Literal[False] = Field(
        default_factory=PrefixCacheSection,
        description="Activations of frozen layers, shared by trials; a limit in GB, or false.",
    )
    acquisition: Literal["logei", "ucb"] = "logei"
    pruner: Literal["median", "hyperband", "none"] = "median"
    epochs: float | None = Field(None, gt=0, description="Per trial; train.epochs by default.")
    fused_evaluations: int | None = Field(
        None,
        ge=1,
        description="Budget of the inner search of fused; fuse.evaluations by default.",
    )
    inner: Literal["auto", "full"] = Field(
        "auto", description="auto ends the inner search of a trial that can no longer win."
    )
    space: dict[str, Range] = Field(default_factory=dict)

    @field_validator("prefix_cache", mode="before")
    @classmethod
    def _number_is_a_limit(cls, value: object) -> object:
        if value is True:
            return {}
        number = isinstance(value, int | float) and value is not False
        return {"limit_gb": value} if number else value

    @model_validator(mode="after")
    def _space_is_needed(self) -> SearchSection:
        if self.trials and not self.space:
            raise ValueError("a search needs a space; give search.space or search.trials: 0")
        return self


class Trajectories(Section):
    """From how many training runs the members come."""

    count: int = Field(1, ge=1)
    source: Literal["seeds", "trials"] = Field(
        "seeds",
        description="seeds: one λ, other data orders and dropout; trials: the best λ's of the "
        "search. All start from the same head.",
    )


class TrainSection(Section):
    """The training run, or runs, whose checkpoints become the members."""

    epochs: float = Field(3.0, gt=0)
    members: int = Field(15, ge=2, description="In all, over every trajectory.")
    trajectories: Trajectories = Field(default_factory=Trajectories)
    collect_from: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the training before the first member."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Any field of transformers.TrainingArguments."
    )

    @field_validator("trajectories", mode="before")
    @classmethod
    def _a_number_is_a_count(cls, value: object) -> object:
        return {"count": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _evenly_from_each(self) -> TrainSection:
        count = self.trajectories.count
        if self.members % count:
            below = self.members // count * count
            raise ValueError(
                f"members ({self.members}, in all) must be a multiple of trajectories.count "
                f"({count}): {f'{below} or ' if below else ''}{below + count}"
            )
        return self

    @property
    def members_each(self) -> int:
        """Members of one trajectory."""
        return self.members // self.trajectories.count


class FuseSection(Section):
    """The inner search, over the fusion weights w."""

    sampler: Literal["mobo", "bo", "random", "tpe", "nsga2", "cmaes", "gp"] = Field(
        "mobo", description="What proposes w; another than mobo takes its row and its place."
    )
    evaluations: int = Field(90, ge=2, description="In all, the starting points included.")
    prior: bool = Field(
        True, description="Whether the mixture of the members' predictions may lead mobo."
    )
    averaging: Literal["auto", "resident", "host", "streaming"] = Field(
        "auto", description="Where members are kept while they are averaged."
    )
    adapters: Literal["exact", "factors"] = Field(
        "exact", description="factors averages A and B of LoRA apart, as some papers do."
    )
    export: ExportText = Field(
        "merged", description="Of adapters: merged, adapter, or adapter-svd:RANK."
    )
    compile: bool = Field(
        False, description="Evaluate members and averages with torch.compile."
    )
    candidates_per_pass: Literal["auto"] | PositiveInt = Field(
        "auto", description="Models evaluated side by side; auto: more than one on a GPU only."
    )
    racing: bool = Field(
        False, description="Drop a w as soon as a part of the split shows it dominated."
    )
    oracle_evaluations: int | None = Field(
        None, ge=1, description="Subsets that oracle evaluates on test; evaluations by default."
    )
    methods: list[str] = Field(default_factory=lambda: ["finetune", "swa", "greedy", "mobo"])
    choose: Literal["consensus", "best", "posterior", "knee", "constraint"] = Field(
        "consensus", description="Rule by which the fused model is chosen on validation."
    )
    constraint: str | None = Field(
        None, description='Bounds and a goal, as "loss <= 0.5, max f1".'
    )

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[str]) -> list[str]:
        from fusetune.methods import available
        from fusetune.report.content import REFERENCES

        for name in value:
            if name.partition(":")[0] in PROCEDURES:
                raise ValueError(
                    f"{name!r} is a pipeline with trainings of its own, no way to fuse the "
                    f"members of one run; use fusetune compare RECIPE --methods {name}"
                )
        _check_names("method", value, available())
        if REFERENCES.issuperset(value):
            raise ValueError("give at least one method whose weights may be chosen")
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _fits_together(self) -> FuseSection:
        from fusetune.optimization.constraint import Constraint

        if self.compile and self.candidates_per_pass not in ("auto", 1):
            raise ValueError(
                "compiled models are evaluated one after the other; leave out "
                "candidates_per_pass, or compile"
            )
        if self.constraint is not None:
            try:
                Constraint.parse(self.constraint)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        elif self.choose == "constraint":
            raise ValueError(
                "choose: constraint needs fuse.constraint, as 'loss <= 0.5, max f1'"
            )
        return self

    @property
    def rows(self) -> list[str]:
        """The methods, with the sampler in the place of `mobo`."""
        return list(dict.fromkeys(self.sampler if m == "mobo" else m for m in self.methods))


class Recipe(Section):
    """Everything that a run depends on."""

    seed: int = Field(41, ge=0)
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

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = [
            *_unknown_arguments("train.arguments", self.train.arguments),
            *_unknown_arguments("search.space", self.search.space),
            *_objective_problems(self.search.objective),
            *_trajectory_problems(self),
            *lora_problems(
                self.model,
                self.search.variant,
                self.fuse.export,
                self.fuse.adapters,
                self.fuse.averaging,
            ),
        ]
        if self.fuse.evaluations < self.train.members:
            problems.append(
                f"fuse.evaluations: {self.fuse.evaluations} is less than train.members: "
                f"{self.train.members}; every member is evaluated once"
            )
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

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain data, every default included."""
        return self.model_dump(mode="json", exclude_none=False)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        text: str = yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True, width=96)
        return text


def _check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            near = closest(name, known)
            raise ValueError(f"unknown {what} {name!r}{near} (known: {', '.join(known)})")


def _objective_problems(objective: str) -> list[str]:
    from fusetune.methods import available
    from fusetune.report.content import REFERENCES

    inner = (method for method in available() if method not in REFERENCES)
    known = ["best_member", "fused", *(f"fused:{method}" for method in inner)]
    if objective in known:
        return []
    return [f"search.objective: unknown {objective!r}{closest(objective, known)}"]


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


def _unknown_arguments(path: str, names: Iterable[str]) -> list[str]:
    """Names that are no field of TrainingArguments."""
    names = list(names)
    if not names:
        return []
    from transformers import TrainingArguments

    from fusetune.training.arguments import ALIASES, OWN

    known = [f.name for f in dataclasses.fields(TrainingArguments)] + list(ALIASES)
    problems = [
        f"{path}.{name}: no field of TrainingArguments{closest(name, known)}"
        for name in names
        if name not in known
    ]
    return problems + [f"{path}.{n}: set by {OWN[n]}" for n in names if n in OWN]
