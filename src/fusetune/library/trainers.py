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

    Names lose their "eval_". The trainer has its own model back after each call. The model of
    SetFit's trainer is the sentence encoder; the classifier on it is fitted anew each time, to
    the trainer's training rows.

    Args:
        trainer: With an evaluation data set.

    Raises:
        EvaluateError: If it has none; if SetFit's is asked for another model than its own.
    """
    judged_otherwise = getattr(trainer, "evaluator", None) is not None  # sentence-transformers
    if getattr(trainer, "eval_dataset", trainer) is None and not judged_otherwise:
        raise EvaluateError(
            "The trainer has no eval_dataset to evaluate candidates on.",
            "Give it one, or write evaluate(model) yourself.",
        )
    if hasattr(trainer, "st_trainer"):
        return _with_classifier(trainer)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        own = trainer.model
        trainer.model = model
        try:
            found = trainer.evaluate()
        finally:
            trainer.model = own
        return {str(name).removeprefix(PREFIX): value for name, value in found.items()}

    return evaluate


def _with_classifier(trainer: Any) -> Evaluate:
    """Of SetFit: a classifier on the embeddings of the candidate, and what it achieves."""

    def evaluate(model: nn.Module) -> Mapping[str, Any]:
        if model is not trainer.model.model_body:
            raise EvaluateError(
                "SetFit's trainer evaluates its own sentence encoder only.",
                "Give model_init=lambda: trainer.model.model_body.",
            )
        texts, labels = trainer.dataset_to_parameters(trainer.train_dataset)
        trainer.train_classifier(texts, labels)
        found: Mapping[str, Any] = trainer.evaluate()
        return found

    return evaluate
