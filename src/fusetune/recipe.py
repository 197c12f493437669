"""The recipe: one frozen and validated tree; `recipe_file` reads it.

Only `run`, `pipeline` and `cli` know these classes; everything else takes plain arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fusetune.errors import RecipeError, closest

Scalar = bool | int | float | str | None
SplitName = Literal["train", "validation", "test"]


class Section(BaseModel):
    """Base of every section: a mistyped key is an error, a value never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSection(Section):
    """How validation and test are made where the official test has no labels."""

    halve: SplitName | None = Field(
        None, description="Split whose rows become half validation, half test."
    )
    hold_out: int | None = Field(
        None, ge=1, description="Training rows that become validation; validation becomes test."
    )
    seed: int | None = Field(None, description="Seed of the shuffle; the recipe's by default.")

    @model_validator(mode="after")
    def _one_of_two(self) -> SplitSection:
        if (self.halve is None) == (self.hold_out is None):
            raise ValueError("give either halve or hold_out, or write split: none")
        return self


class TaskSection(Section):
    """What is learned."""

    kind: str = "sequence-classification"
    data: str | dict[SplitName, str] = Field(
        description="A hub id (name or name:config), a folder with train, validation and test "
        "files, or a mapping from split to file."
    )
    name: str | None = Field(None, description="Name in reports; taken from data by default.")
    split: SplitSection | None = None
    text: list[str] = Field(min_length=1, description="Columns of the input texts, in order.")
    label: str = "label"
    metrics: list[str] = Field(min_length=1, description="The first is the primary metric.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the task's kind."
    )

    @field_validator("split", mode="before")
    @classmethod
    def _none_means_as_is(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("text", "metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class ModelSection(Section):
    """Which network, and in which precision it computes."""

    name: str = Field(description="Folder, hub id, or a packaged model by its short name.")
    revision: str | None = None
    max_length: int | None = Field(
        None, ge=8, description="Tokens; the model's limit by default."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    allow_pickle: bool = Field(
        False, description="Consent to load .bin/.pt weights (weights_only) if need be."
    )
    trust_remote_code: bool = False


class Range(Section):
    """A hyper-parameter between two bounds, or one of several choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = Field(None, gt=0)
    choices: list[Scalar] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Range:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step:
                raise ValueError("choices cannot be mixed with low, high, log or step")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale needs low > 0, got {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self


class Variant(Section):
    """A light variant of the model: its first layers and its embeddings do not train."""

    freeze_layers: int = Field(ge=1)


class SearchSection(Section):
    """The outer search, over the fine-tuning hyper-parameters λ."""

    trials: int = Field(10, ge=0, description="0 trains with train.arguments as they are.")
    objective: str = Field(
        "best_member", description="best_member, fused, or fused:METHOD (bilevel)."
    )
    variant: Variant | Literal["full"] = "full"
    acquisition: Literal["logei", "ucb"] = "logei"
    pruner: Literal["median", "hyperband", "none"] = "median"
    epochs: float | None = Field(None, gt=0, description="Per trial; train.epochs by default.")
    fused_evaluations: int | None = Field(
        None,
        ge=1,
        description="Budget of the inner search of fused; fuse.evaluations by default.",
    )
    space: dict[str, Range] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _space_is_needed(self) -> SearchSection:
        if self.trials and not self.space:
            raise ValueError("a search needs a space; give search.space or search.trials: 0")
        return self


class TrainSection(Section):
    """The one training run whose checkpoints become the members."""

    epochs: float = Field(3.0, gt=0)
    members: int = Field(15, ge=2)
    collect_from: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the training before the first member."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Any field of transformers.TrainingArguments."
    )


class FuseSection(Section):
    """The inner search, over the fusion weights w."""

    sampler: Literal["mobo", "bo", "random", "tpe", "nsga2", "cmaes", "gp"] = Field(
        "mobo", description="What proposes w; another than mobo takes its row and its place."
    )
    evaluations: int = Field(90, ge=2, description="In all, the starting points included.")
    averaging: Literal["auto", "resident", "host", "streaming"] = Field(
        "auto", description="Where members are kept while they are averaged."
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

        _check_names("method", value, available())
        if REFERENCES.issuperset(value):
            raise ValueError("give at least one method whose weights may be chosen")
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _constraint_can_be_read(self) -> FuseSection:
        from fusetune.optimization.constraint import Constraint

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


class ExecutorSection(BaseModel):
    """Where evaluations run; further keys are the executor's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = "serial"


class Recipe(Section):
    """Everything that a run depends on."""

    seed: int = Field(41, ge=0)
    task: TaskSection
    model: ModelSection
    search: SearchSection
    train: TrainSection = Field(default_factory=TrainSection)
    fuse: FuseSection = Field(default_factory=FuseSection)
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
        ]
        if self.fuse.evaluations < self.train.members:
            problems.append(
                f"fuse.evaluations: {self.fuse.evaluations} is less than train.members: "
                f"{self.train.members}; every member is evaluated once"
            )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

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

    known = ["best_member", "fused", *(f"fused:{method}" for method in available())]
    if objective in known:
        return []
    return [f"search.objective: unknown {objective!r}{closest(objective, known)}"]


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
