"""Evaluating with a trainer that is there already: `Trainer` and everything derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from fusetune.errors import EvaluateError
from fusetune.library.function import Evaluate

PREFIX = "eval_"


class Evaluates(Protocol):
    """What `Trainer`, `Seq2SeqTrainer`, `SFTTrainer`, … have in common."""

    model: Any

    def evaluate(self) -> Mapping[str, Any]:
        """Loss and metrics on the evaluation data set, as "eval_loss", …."""
        ...


def evaluate_with(trainer: Evaluates) -> Evaluate:
    """`trainer.evaluate` as a function of a model, with its `compute_metrics`.

    Names lose their "eval_". The trainer has its own model back after each call.

    Args:
        trainer: With an evaluation data set.

    Raises:
        EvaluateError: If it has none.
    """
    if getattr(trainer, "eval_dataset", trainer) is None:
        raise EvaluateError(
            "The trainer has no eval_dataset to evaluate candidates on.",
            "Give it one, or write evaluate(model) yourself.",
        )

    def evaluate(model: nn.Module) -> dict[str, Any]:
        own = trainer.model
        trainer.model = model
        try:
            found = trainer.evaluate()
        finally:
            trainer.model = own
        return {str(name).removeprefix(PREFIX): value for name, value in found.items()}

    return evaluate
