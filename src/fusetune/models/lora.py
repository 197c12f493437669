"""LoRA through PEFT: a model whose adapters, and new head, are all that trains.

A light variant is the same adapter at a low rank, with s = α / r left as it is, PEFT's own
convention: α is lowered with r. With rsLoRA s = α / √r is meant to make one α and one learning
rate right for every rank, so there α stays.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from transformers import PreTrainedModel

from fusetune.errors import ModelError, RecipeError
from fusetune.models.quantised import quantised_layers

# Ending of a model's class → PEFT's task type, and whether all beside the backbone is new.
TASK_TYPES: Mapping[str, tuple[str | None, bool]] = {
    "ForSequenceClassification": ("SEQ_CLS", True),
    "ForTokenClassification": ("TOKEN_CLS", True),
    "ForQuestionAnswering": ("QUESTION_ANS", True),
    "ForMultipleChoice": (None, True),
    "ForCausalLM": ("CAUSAL_LM", False),
    "LMHeadModel": ("CAUSAL_LM", False),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", False),
}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What an adapter is.

    Attributes:
        rank: r.
        alpha: α of the scaling; None for r, which is s = 1 without rsLoRA.
        target_modules: Names of modules, a regular expression, "all-linear", or None for
            PEFT's own choice for the architecture.
        dropout: On the adapters' inputs, in training.
        rslora: s = α / √r.
        dora: Trains the lengths of rows apart from their directions.
        rank_pattern: Module (the end of its path) → another rank.
        alpha_pattern: The same for alpha.
        modules_to_save: Modules that train as a whole, beside a classifier's head, which
            always does.
        bias: Which biases train: none, all, or those of targeted modules.
    """

    rank: int
    alpha: float | None = None
    target_modules: str | Sequence[str] | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: Sequence[str] = ()
    bias: str = "none"

    def at_rank(self, rank: int) -> LoraSettings:
        """The light variant: ranks and alphas lowered in proportion, none below 1."""
        share = rank / self.rank
        ranks = {name: max(1, round(r * share)) for name, r in self.rank_pattern.items()}
        if self.rslora:
            alphas, alpha = dict(self.alpha_pattern), self.alpha or self.rank
        else:
            alpha = (self.alpha or self.rank) * share
            alphas = {name: a * share for name, a in self.alpha_pattern.items()}
            for name, own in self.rank_pattern.items():  # its own share, after rounding
                alphas[name] = self.alpha_pattern.get(name, self.alpha or self.rank) * (
                    ranks[name] / own
                )
        return dataclasses.replace(
            self, rank=rank, alpha=alpha, rank_pattern=ranks, alpha_pattern=alphas
        )


def require_peft() -> ModuleType:
    """The package peft.

    Raises:
        ModelError: If it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise ModelError(
            "model.lora needs the package peft.",
            "Install it with `pip install 'fusetune[lora]'`.",
        ) from None


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> PreTrainedModel:
    """Wrap a model, whose own weights no longer train.

    Args:
        model: With its head.
        settings: Of the adapter.

    Returns:
        A `peft.PeftModel`, which is called and saved as the model is.

    Raises:
        ModelError: If peft is not installed.
        RecipeError: If PEFT refuses: no such modules, or no choice known for them.
    """
    peft = require_peft()
    kind, new_head = _kind(model)
    heads = beside_backbone(model) if new_head else []
    targets = settings.target_modules
    try:
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or settings.rank,
            target_modules=targets
            if targets is None or isinstance(targets, str)
            else [*targets],
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            rank_pattern=dict(settings.rank_pattern),
            alpha_pattern=dict(settings.alpha_pattern),
            modules_to_save=list(dict.fromkeys([*heads, *settings.modules_to_save])) or None,
            bias=settings.bias,
            task_type=kind,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            wrapped: Any = peft.get_peft_model(model, config)
        if quantised_layers(model):
            _train_in_float32(wrapped)
    except (ValueError, TypeError, KeyError, re.error) as error:
        hint = "Give model.lora.target_modules, as [q_proj, v_proj] or all-linear."
        if "lora.ParamWrapper" in str(error):  # PEFT's wrapper of the experts of a mixture
            hint = (
                "Experts of a mixture take neither dropout nor DoRA: leave out "
                "model.lora.dropout and model.lora.dora, or name other target_modules."
            )
        raise RecipeError(
            f"model.lora: PEFT cannot adapt {type(model).__name__}: "
            f"{str(error).strip().splitlines()[0]}",
            hint,
        ) from error
    return cast(PreTrainedModel, wrapped)


def _kind(model: PreTrainedModel) -> tuple[str | None, bool]:
    name = type(model).__name__
    for ending, found in TASK_TYPES.items():
        if name.endswith(ending):
            return found
    return None, False


def _train_in_float32(model: PreTrainedModel) -> None:
    """What trains on a quantised base: a head in 16 bits would lose small steps."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize == 2:
            parameter.data = parameter.data.float()


def beside_backbone(model: PreTrainedModel) -> list[str]:
    """Direct parts of a model that are not its backbone and have parameters: its head."""
    backbone = model.base_model
    return [
        name
        for name, part in model.named_children()
        if part is not backbone and next(part.parameters(), None) is not None
    ]
