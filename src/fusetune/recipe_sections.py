"""Sections of a recipe that depend on no other: the task, the model, a search's ranges."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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


class PrefixCacheSection(Section):
    """Kept activations of the frozen layers of a light variant."""

    limit_gb: float = Field(4.0, gt=0, description="Larger caches are not made.")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="float16 takes half the space and rounds."
    )
