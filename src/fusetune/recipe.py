"""The recipe: one frozen and validated tree; `recipe_file` reads it.

Only `run`, `pipeline` and `cli` know these classes; everything else takes plain arguments.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from fusetune.recipe_checks import problems
from fusetune.recipe_sections import (
    CompareSection,
    ExecutorSection,
    ModelSection,
    Place,
    Section,
    TaskSection,
    Variant,
)
from fusetune.recipe_stages import PROCEDURES, FuseSection, SearchSection, TrainSection
from fusetune.recipe_yaml import write_yaml
from fusetune.redaction import tree_without_secrets

__all__ = ["PROCEDURES", "Recipe", "Variant"]


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
    storage: Place | None = Field(
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
        if found := problems(self):
            raise ValueError("\n  ".join(found))
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
        """The same without passwords, tokens and cluster: what may be kept and shown."""
        tree: dict[str, Any] = tree_without_secrets(self.dump())
        tree["executor"].pop("address", None)  # which cluster to join, the user says each time
        return tree

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, without passwords and tokens."""
        return write_yaml(self.public())
