"""`grid`: `finetune` over a grid of learning rates, the usual practice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from transformers import TrainingArguments

from fusetune.pipeline.procedures.procedure import FIXED, Candidate, fixed
from fusetune.recipe import Recipe

DEFAULT = next(f.default for f in fields(TrainingArguments) if f.name == "learning_rate")


def grid(recipe: Recipe) -> Sequence[Candidate]:
    """One training per learning rate of `compare.learning_rates`; validation chooses.

    A learning rate that is the fixed λ's is no training of its own.
    """
    found = []
    for rate in dict.fromkeys(recipe.compare.learning_rates):
        if rate == recipe.train.arguments.get("learning_rate", DEFAULT):
            found.append(Candidate(FIXED, fixed(recipe, "finetune"), "finetune"))
        else:
            changed = fixed(recipe, "finetune", learning_rate=rate)
            found.append(Candidate(f"grid-{rate:g}", changed, "finetune"))
    return found
