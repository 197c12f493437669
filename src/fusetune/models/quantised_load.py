"""Loading a base model with quantised weights, for adapters that are trained on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fusetune.errors import ModelError
from fusetune.models.quantised import PACKAGE, quantised_layers, steady

NONE = "none"
# Heads by the names that transformers gives them; what else must not be quantised is found
# once the model is there.
HEADS = (
    "lm_head", "embed_out", "classifier", "score", "qa_outputs", "pre_classifier",
    "classification_head", "sequence_summary", "logits_proj",
)  # fmt: skip


def stored(config: Any) -> Mapping[str, Any]:
    """How the weights that belong to a configuration are quantised; empty if they are not."""
    packed = getattr(config, "quantization_config", None)
    if packed is None:
        return {}
    found: Mapping[str, Any] = packed if isinstance(packed, Mapping) else packed.to_dict()
    return {"quant_method": "an unknown method", **found}


def stored_kind(packed: Mapping[str, Any]) -> str:
    """Of what `stored` gave: "4bit" or "8bit"; "none" if it is not of bitsandbytes."""
    if packed.get("quant_method") != PACKAGE:
        return NONE
    return "4bit" if packed.get("load_in_4bit") else "8bit"


def require_bitsandbytes() -> None:
    """Raise `ModelError` unless the package that quantises is installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModelError(
            f"Quantised base models need the package {PACKAGE}.",
            "Install it with `pip install 'fusetune[quantized]'`.",
        )


def load(
    make: Callable[..., Any],
    bits: str,
    *,
    device: torch.device,
    precision: torch.dtype,
    packed: bool,
) -> Any:
    """A model whose linear layers are quantised, but for its head.

    4 bits are NormalFloat with double quantisation, and are multiplied in `precision`. What is
    not quantised is in bfloat16 if that is the precision, else in float32. The head, or what
    gives the logits, is never quantised: a new one has to be trained, and an old one is where
    rounding costs most. If one is that does not bear a usual name, the model is loaded again.

    Args:
        make: Called with keyword arguments for `from_pretrained`; gives a model, or a tuple
            with it.
        bits: "4bit" or "8bit".
        device: Where the model is evaluated and trained; layers are quantised there.
        precision: Of the run.
        packed: Whether the weights are stored that way; their own settings are kept then.
    """
    options: dict[str, Any] = {
        "device_map": {"": device},
        "dtype": torch.bfloat16 if precision is torch.bfloat16 else torch.float32,
    }
    if packed:
        made = make(**options)
    else:
        skipped = list(HEADS)
        made = make(**options, quantization_config=_config(bits, precision, skipped))
        if wrong := _must_not(_model_of(made)):
            del made
            skipped += wrong
            made = make(**options, quantization_config=_config(bits, precision, skipped))
    model = steady(_model_of(made))
    layers: Iterable[Any] = quantised_layers(model).values()
    for layer in layers:
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype, layer.compute_type_is_set = precision, True
    return made


def _config(bits: str, precision: torch.dtype, skipped: list[str]) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
        llm_int8_skip_modules=skipped,
    )


def _model_of(made: Any) -> Any:
    return made[0] if isinstance(made, tuple) else made


def _must_not(model: Any) -> list[str]:
    """Paths of quantised layers of the head, or that give the logits."""
    from fusetune.models.lora import beside_backbone

    heads = beside_backbone(model) if model.base_model is not model else []
    output = model.get_output_embeddings()
    return [
        name
        for name, layer in quantised_layers(model).items()
        if layer is output or name.partition(".")[0] in heads
    ]
