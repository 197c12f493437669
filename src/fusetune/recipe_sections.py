"""Sections of a recipe that depend on no other, and what all sections share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusetune.errors import RecipeError

Scalar = bool | int | float | str | None
SplitName = Literal["train", "validation", "test"]
WITHOUT_COLUMNS = ("lm-eval",)
"""Kinds of tasks that say themselves where inputs and answers stand."""
MAX_RANK = 2**16
MAX_EPOCHS = 1e6
MAX_NAME = 255  # bytes of the name of a file, on the usual systems
MAX_INTEGER = 2**53  # every number up to it is the same as JSON and as a float


def _known_form(value: str) -> str:
    from fusetune.members.adapter_export import ExportForm

    try:
        ExportForm.parse(value)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return value


def _possible_place(value: str) -> str:
    """A path that a system can have; a URL is left to what reads it."""
    if "\0" in value:
        raise ValueError("has a NUL character, which is in no name of a file")
    parts = () if "://" in value else value.split("/")
    if any(len(os.fsencode(part)) > MAX_NAME for part in parts):
        raise ValueError(f"no file has a name of more than {MAX_NAME} bytes")
    return value


Place = Annotated[str, Field(min_length=1), AfterValidator(_possible_place)]
"""A path, a URL or a hub id."""

ExportText = Annotated[str, AfterValidator(_known_form)]


class Section(BaseModel):
    """Base of every section: a mistyped key is an error, a value never changes its meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes true for 1 where a number is wanted."""
        if isinstance(value, bool) and info.field_name is not None:
            wanted = str(cls.model_fields[info.field_name].annotation)
            if "bool" not in wanted and ("int" in wanted or "float" in wanted):
                raise ValueError("Input should be a number")
        return value


class SplitSection(Section):
    """How validation and test are made where the official test has no labels."""

    halve: SplitName | None = Field(
        None, description="Split whose rows become half validation, half test."
    )
    hold_out: int | None = Field(
        None, ge=1, description="Training rows that become validation; validation becomes test."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="Seed of the shuffle; the recipe's by default."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> SplitSection:
        if (self.halve is None) == (self.hold_out is None):
            raise ValueError("give either halve or hold_out, or write split: none")
        return self


class TaskSection(Section):
    """What is learned."""

    kind: str = "sequence-classification"
    data: Place | Annotated[dict[SplitName, Place], Field(min_length=1)] = Field(
        description="A hub id (name or name:config), a folder with train, validation and test "
        "files, or a mapping from split to file."
    )
    name: str | None = Field(None, description="Name in reports; taken from data by default.")
    split: SplitSection | None = None
    text: list[str] = Field(
        default_factory=list, description="Columns of the input texts, in order."
    )
    label: str = "label"
    prompt: str | None = Field(
        None, description="Jinja template of a row's prompt, for kinds that generate text."
    )
    reference: str | None = Field(
        None, description="Column of the reference text or texts, or a path as answers.text."
    )
    metrics: list[str] = Field(min_length=1, description="The first is the primary metric.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the task's kind."
    )

    @field_validator("data", mode="before")
    @classmethod
    def _splits_by_their_names(cls, value: object) -> object:
        from fusetune.tasks.data import canonical_splits

        return canonical_splits(value) if isinstance(value, dict) else value

    @field_validator("split", mode="before")
    @classmethod
    def _none_means_as_is(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("text", "metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _text_or_prompt(self) -> TaskSection:
        if self.kind in WITHOUT_COLUMNS:
            if self.text or self.prompt is not None or self.reference is not None:
                raise ValueError(f"a task of kind {self.kind} has no text, prompt or reference")
            return self
        if bool(self.text) == (self.prompt is not None):
            raise ValueError("give text and label, or prompt and reference")
        if (self.prompt is None) != (self.reference is None):
            raise ValueError("prompt and reference belong together")
        return self

    @property
    def inputs(self) -> dict[str, Any]:
        """Where a row's input and its answer stand, as arguments of the task's kind."""
        if self.kind in WITHOUT_COLUMNS:
            return {}
        if self.prompt is None:
            return {"text": self.text, "label": self.label}
        return {"prompt": self.prompt, "reference": self.reference}


class LoraSection(Section):
    """Low-rank adapters, by PEFT; a new classifier's head always trains beside them."""

    rank: int = Field(16, ge=1, le=MAX_RANK)
    alpha: float | None = Field(None, gt=0, description="Of the scaling alpha/r; rank if none.")
    target_modules: list[str] | str | None = Field(
        None, description="Names, a regular expression or all-linear; PEFT's choice if none."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    rslora: bool = Field(False, description="Scale by alpha/sqrt(r).")
    dora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MAX_RANK)]] = Field(
        default_factory=dict
    )
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    modules_to_save: list[str] = Field(default_factory=list)
    bias: Literal["none", "all", "lora_only"] = "none"


class ModelSection(Section):
    """Which network, and in which precision it computes."""

    name: Place = Field(description="Folder, hub id, or a packaged model by its short name.")
    revision: str | None = None
    max_length: int | None = Field(
        None, ge=8, description="Tokens; the model's limit by default."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    device_map: (
        Literal["auto", "balanced", "balanced_low_0", "sequential"]
        | dict[str, str | int]
        | None
    ) = Field(
        None,
        description="Of a model too large for one device: on which ones its layers lie, as "
        "Transformers takes it.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    allow_pickle: bool = Field(
        False, description="Consent to load .bin/.pt weights (weights_only) if need be."
    )
    trust_remote_code: bool = False
    gguf_file: str | None = Field(
        None, description="Name of a GGUF file in the folder, or at the hub."
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        "none", description="Of the base model, by bitsandbytes, with lora."
    )
    lora: LoraSection | None = Field(
        None, description="Train adapters instead of the weights; a number is the rank."
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _a_number_is_a_rank(cls, value: object) -> object:
        return {"rank": value} if isinstance(value, int) else value


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

    def mapped(self, understand: Callable[[Any], Any]) -> Range:
        """The same with its bounds and choices as a function gives them, each choice once."""
        if self.choices is not None:
            return self.model_copy(
                update={"choices": list(dict.fromkeys(map(understand, self.choices)))}
            )
        return self.model_copy(
            update={"low": understand(self.low), "high": understand(self.high)}
        )

    def spans(self, value: float) -> bool:
        """Whether a number lies between the bounds, or the least and the largest choice."""
        ends = [self.low, self.high] if self.choices is None else self.choices
        numbers = [float(v) for v in ends if isinstance(v, int | float)]
        return bool(numbers) and min(numbers) <= value <= max(numbers)


class StudySection(Section):
    """Trials of an Optuna study that begin a search."""

    storage: Place = Field(description="URL of the storage, or the file of a journal.")
    study: str | None = Field(None, description="Its name; needed where there are several.")
    trials: PositiveInt = Field(3, description="How many of its best are evaluated anew.")


class Variant(Section):
    """A light variant of the model: first layers and embeddings frozen, or a low rank."""

    freeze_layers: int | None = Field(None, ge=1)
    lora_rank: int | Literal["auto"] | None = Field(
        None, description="Of the search, with model.lora; auto is a sixteenth of its rank."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Variant:
        if (self.freeze_layers is None) == (self.lora_rank is None):
            raise ValueError("give either freeze_layers or lora_rank")
        if isinstance(self.lora_rank, int) and self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {self.lora_rank}")
        return self

    def rank_of(self, full: int) -> int:
        """The rank of the search for a full rank, with `lora_rank`."""
        return max(1, full // 16) if self.lora_rank in ("auto", None) else int(self.lora_rank)


class PrefixCacheSection(Section):
    """Kept activations of the frozen layers of a light variant."""

    limit_gb: float = Field(4.0, gt=0, description="Larger caches are not made.")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="float16 takes half the space and rounds."
    )


class CompareSection(Section):
    """What `fusetune compare` alone needs."""

    learning_rates: list[float] = Field(
        default_factory=lambda: [1e-5, 2e-5, 3e-5],
        min_length=1,
        description="The grid of the row grid.",
    )


class ExecutorSection(BaseModel):
    """Where evaluations run; further keys are the executor's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = "serial"


def number_problems(path: str, value: Any) -> list[str]:
    """Numbers in free-form values that nothing can be computed with."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in number_problems(f"{path}.{k}", v)]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in number_problems(f"{path}.{i}", v)]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}: must be a finite number, got {value}"]
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return [f"{path}: must be between ±2^53"]
    return []
