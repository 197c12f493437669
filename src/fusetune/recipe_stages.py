"""Sections of a recipe on the stages: search, training, fusion."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fusetune.errors import RecipeError, closest
from fusetune.recipe_sections import (
    MAX_EPOCHS,
    ExportText,
    Place,
    PrefixCacheSection,
    Range,
    Section,
    StudySection,
    Variant,
)

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
    choose: Literal["cautious", "best"] = Field(
        "cautious",
        description="cautious: of light or short trials that validation cannot tell from the "
        "best one, that whose learning rate is nearest to train.arguments; best: the best one.",
    )
    pruner: Literal["median", "hyperband", "none"] = "median"
    epochs: float | None = Field(
        None, gt=0, le=MAX_EPOCHS, description="Per trial; train.epochs by default."
    )
    fused_evaluations: int | None = Field(
        None,
        ge=1,
        description="Budget of the inner search of fused; fuse.evaluations by default.",
    )
    space: dict[str, Range] = Field(default_factory=dict)
    start: StudySection | None = Field(
        None, description="An Optuna study whose best trials are the first ones here."
    )

    @field_validator("space")
    @classmethod
    def _as_their_fields_take_them(cls, value: dict[str, Range]) -> dict[str, Range]:
        if not value:
            return value
        from fusetune.training.fields import understood_or_given

        return {n: r.mapped(partial(understood_or_given, n)) for n, r in value.items()}

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
        if self.start is not None and self.start.trials > self.trials:
            raise ValueError(
                f"start.trials ({self.start.trials}) is more than trials ({self.trials}), "
                "which counts them too"
            )
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

    checkpoints: list[Place] | None = Field(
        None,
        min_length=1,
        description="Existing checkpoints, folders or patterns, in the place of a training.",
    )
    epochs: float = Field(3.0, gt=0, le=MAX_EPOCHS)
    members: int = Field(15, ge=2, description="In all, over every trajectory.")
    trajectories: Trajectories = Field(default_factory=Trajectories)
    collect_from: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the training before the first member."
    )
    retries: int = Field(
        2,
        ge=0,
        description="How many lower learning rates are tried, at most, where λ is of a light "
        "or short trial: the training is begun with half the rate too, and the lower one goes "
        "on unless it is clearly worse.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Any field of transformers.TrainingArguments."
    )

    @field_validator("arguments")
    @classmethod
    def _as_their_fields_take_them(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            return value
        from fusetune.training.fields import understood_or_given

        return {name: understood_or_given(name, given) for name, given in value.items()}

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

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
        True, description="Whether predictions of members and averages may lead mobo."
    )
    base_member: bool = Field(
        False,
        description="Whether the model that the training began with is a member too, with the "
        "first member's head where it has none of its own.",
    )
    start: list[Place] = Field(
        default_factory=list,
        description="Recipes of mergekit (linear) whose weights are starting points too.",
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
    candidates_per_pass: Literal["auto"] | PositiveInt = Field(
        "auto", description="Models evaluated side by side; auto: more than one on a GPU only."
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

    @field_validator("start", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

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

        if self.start and not {"mobo", "bo"} & set(self.rows):
            raise ValueError("start is for mobo and bo; the other samplers start from nothing")
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


def _check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            near = closest(name, known)
            raise ValueError(f"unknown {what} {name!r}{near}; known: {', '.join(known)}")
